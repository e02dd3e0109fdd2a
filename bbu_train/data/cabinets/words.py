"""Descriptions of what synthetic cabinets hold, in English and Chinese: "type/property" or "type/property/extra"."""

import numpy as np

MAKES = ("huawei", "zte", "ericsson", "nokia")

_WORDS = {
    "english": {
        "bbu": "bbu",
        "huawei": "huawei",
        "zte": "zte",
        "ericsson": "ericsson",
        "nokia": "nokia",
        "running": "running",
        "alarm": "alarm",
        "screw": "screw",
        "correct": "correct",
        "wrong": "wrong",
        "no mark": "no mark",
        "loose": "loose",
        "seated": "connector seated",
        "tilted": "connector tilted",
        "baffle": "wind baffle",
        "installed": "installed",
        "missing": "missing",
        "label": "label",
        "readable": "readable",
        "unreadable": "unreadable",
        "slot": "slot",
        "empty": "empty",
        "filled": "filled",
    },
    "chinese": {
        "bbu": "BBU设备",
        "huawei": "华为",
        "zte": "中兴",
        "ericsson": "爱立信",
        "nokia": "诺基亚",
        "running": "运行正常",
        "alarm": "告警",
        "screw": "螺丝",
        "correct": "正确",
        "wrong": "错误",
        "no mark": "无标记",
        "loose": "松动",
        "seated": "接头到位",
        "tilted": "接头歪斜",
        "baffle": "挡风板",
        "installed": "已安装",
        "missing": "缺失",
        "label": "标签",
        "readable": "可识别",
        "unreadable": "不可识别",
        "slot": "机柜空间",
        "empty": "空",
        "filled": "占用",
    },
}
LANGUAGES = tuple(_WORDS)

_LABEL_TEXTS = {
    "english": ("BBU {n}", "PWR {a}", "RRU {n}", "RACK {n}", "LTE {a}{n}", "GPS {n}", "FIBER {n}", "5G {a}{n}"),
    "chinese": ("{n}号机柜", "电源{a}", "光缆{n}", "基站{a}{n}", "接地{n}", "小区{n}", "传输{a}", "{a}扇区"),
}


def describe(language: str, *levels: str) -> str:
    """Return a description: `describe("chinese", "screw", "wrong", "loose")` is "螺丝/错误/松动".

    A level without a translation is kept as it is.
    """
    words = _WORDS[language]
    return "/".join(words.get(level, level) for level in levels)


def label_text(language: str, random: np.random.Generator) -> str:
    """Return a random text for a label. It becomes the third level of the label's description."""
    template = _LABEL_TEXTS[language][random.integers(len(_LABEL_TEXTS[language]))]
    return template.format(n=random.integers(1, 21), a="ABCD"[random.integers(4)])
