"""The names by which users of other trainers know what a key of the config sets.

One table: the README and `--help` show it, and whoever types a usual word as a key gets its answer. Words are those of
transformers' Trainer, PyTorch Lightning, timm, MMDetection, Ultralytics and DETR. No torch is needed here.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

NUM_COLUMNS = 3  # of the README's table


@dataclass(frozen=True)
class UsualName:
    """What users call a setting, the key that sets it here, and what else they type for it.

    In `key` and `note`, keys and choices of config groups stand in backticks. `note` may be empty, and so may `key`:
    then the program decides.
    """

    name: str
    key: str
    note: str
    words: str

    @property
    def answer(self) -> str:
        """The answer to whoever types one of `words`."""
        what = f"Give {self.key} for {self.name}" if self.key else f"No key sets the {self.name}"
        return f"{what}{f' ({self.note})' if self.note else ''}.".replace("`", "")

    @property
    def in_short(self) -> str:
        """The key, or that there is none."""
        return self.key or "chosen automatically"


USUAL_NAMES = (
    UsualName(
        "batch size",
        "`sampler.num_samples`",
        "samples of a step, over all processes and micro-batches; with `sampler=token_budget`, `sampler.num_rows` and "
        "`sampler.max_row_tokens`",
        "batch_size train_batch_size per_device_train_batch_size per_device_batch_size per_gpu_train_batch_size "
        "global_batch_size samples_per_gpu total_batch_size batch bs",
    ),
    UsualName(
        "gradient accumulation",
        "`engine.num_micro_batches`",
        "a step is computed in so many parts, with the same result; auto takes as few as fit",
        "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches accum_iter accumulation_steps "
        "grad_accum grad_accum_steps accumulate micro_batch_size micro_batches num_micro_batches",
    ),
    UsualName(
        "epochs",
        "`epochs`",
        "such as 3 or 0.5, in place of `steps`",
        "epochs num_epochs num_train_epochs train_epochs max_epochs total_epochs n_epochs nepochs epoch",
    ),
    UsualName(
        "steps",
        "`steps`",
        "optimizer steps of the whole run; or give `epochs`",
        "steps max_steps num_steps total_steps train_steps num_training_steps max_iters max_iter iterations iters "
        "num_iterations",
    ),
    UsualName(
        "learning rate",
        "`optimizer.groups.<group>.lr`",
        "the groups are vision, merger, llm, adapter and detection; `optimizer=adamw_uniform` has one, all",
        "lr learning_rate base_lr max_lr peak_lr init_lr lr0 learning_rates vision_lr vision_tower_lr lr_backbone",
    ),
    UsualName(
        "learning rate schedule",
        "`schedule=warmup_cosine`",
        "`schedule=constant` is the other choice",
        "lr_scheduler lr_scheduler_type scheduler lr_schedule sched lr_policy cos_lr lr_drop",
    ),
    UsualName(
        "warmup",
        "`schedule.num_warmup_steps`",
        "in steps, not as a share of the run",
        "warmup warmup_steps warmup_ratio num_warmup_steps warmup_epochs warmup_iters lr_warmup_steps",
    ),
    UsualName("weight decay", "`optimizer.weight_decay`", "", "weight_decay wd decay"),
    UsualName(
        "gradient clipping",
        "`engine.max_grad_norm`",
        "",
        "max_grad_norm gradient_clip_val grad_clip clip_grad clip_grad_norm clip_max_norm gradient_clipping max_norm",
    ),
    UsualName("seed", "`seed`", "", "seed random_seed manual_seed random_state data_seed"),
    UsualName(
        "mixed precision (fp16, bf16)",
        "`engine.precision`",
        "bf16, fp32 or pure_bf16; there is no fp16; auto takes bf16 on a GPU that computes it",
        "precision mixed_precision bf16 fp16 fp32 amp use_amp dtype torch_dtype half bfloat16 float16",
    ),
    UsualName(
        "gradient checkpointing",
        "`engine.gradient_checkpointing`",
        "none, vision, selective or full; auto takes the fastest that fits",
        "gradient_checkpointing activation_checkpointing grad_checkpointing grad_checkpoint use_checkpoint "
        "checkpoint_activations recompute",
    ),
    UsualName(
        "device",
        "",
        "a run takes the GPU if there is one, torchrun --nproc-per-node starts it on several, and CUDA_VISIBLE_DEVICES "
        "chooses which; a sweep has `launchers.gpus` with `hydra/launcher=local`, and `cluster.gpus_per_node` with "
        "`hydra/launcher=slurm`",
        "device devices gpu gpus gpu_ids gpu_id num_gpus n_gpu n_gpus ngpus cuda accelerator world_size nproc_per_node "
        "local_rank num_nodes strategy",
    ),
    UsualName(
        "data workers",
        "`num_workers`",
        "",
        "num_workers dataloader_num_workers workers num_data_workers preprocessing_num_workers workers_per_gpu",
    ),
    UsualName(
        "output dir",
        "`outputs`",
        "a run lies in <outputs>/<sweep>/<run>: `sweep` and `run` set these names",
        "output_dir outdir out_dir out output save_dir save_path work_dir log_dir logdir logging_dir default_root_dir "
        "checkpoint_dir ckpt_dir results_dir",
    ),
    UsualName(
        "run name",
        "`run`",
        "`sweep` names the folder of several runs",
        "run_name name exp_name experiment_name project project_name run_id",
    ),
    UsualName(
        "eval steps",
        "`eval_every`",
        "in steps",
        "eval_steps eval_interval eval_freq eval_period eval_strategy evaluation_strategy val_check_interval val_every "
        "check_val_every_n_epoch val_interval",
    ),
    UsualName(
        "eval batch size",
        "`eval_batch_size`",
        "",
        "eval_batch_size per_device_eval_batch_size val_batch_size validation_batch_size test_batch_size",
    ),
    UsualName(
        "save steps",
        "`save_every`",
        "in steps",
        "save_steps save_interval save_freq save_period save_strategy checkpoint_every checkpoint_interval "
        "every_n_train_steps save_every_n_steps",
    ),
    UsualName(
        "checkpoints to keep",
        "`checkpoint.keep_last`",
        "the best one by `checkpoint.best_metric` is kept too",
        "save_total_limit save_top_k max_keep_ckpts keep_checkpoint_max metric_for_best_model load_best_model_at_end "
        "monitor greater_is_better",
    ),
    UsualName(
        "logging steps",
        "`log_every`",
        "in steps",
        "logging_steps log_steps log_interval log_freq log_every_n_steps print_freq print_every",
    ),
    UsualName(
        "max length",
        "`collator.max_tokens`",
        "tokens of a sample, pictures included; no sample is ever cut off",
        "max_length max_seq_length max_seq_len max_len model_max_length cutoff_len seq_len seq_length context_length "
        "max_position_embeddings",
    ),
    UsualName(
        "max pixels",
        "`model.max_pixels`",
        "a larger picture is scaled down; `model.min_pixels` likewise",
        "max_pixels min_pixels image_size img_size imgsz resolution image_max_pixels image_resolution input_size",
    ),
    UsualName(
        "freezing",
        "`optimizer.groups.<group>.lr=0`",
        "the groups are vision, merger, llm, adapter and detection",
        "freeze frozen freeze_vision freeze_vision_tower freeze_vit freeze_llm freeze_language_model freeze_backbone "
        "freeze_merger freeze_aligner freeze_multi_modal_projector tune_mm_vision tune_mm_llm tune_mm_mlp",
    ),
    UsualName(
        "resuming",
        "`resume`",
        "the folder of the run, as in `resume=outputs/default/<run>`",
        "resume resume_from_checkpoint resume_from resume_path ckpt_path auto_resume",
    ),
    UsualName(
        "second stage",
        "`init`",
        "a run, a checkpoint or an exported model whose weights a new run begins with",
        "init_from init_weights init_checkpoint load_from load_weights load_checkpoint warm_start finetune_from "
        "finetune pretrained_weights_path init_from_run",
    ),
    UsualName(
        "pretrained weights",
        "`model.checkpoint`",
        "with the shape of `model=qwen25vl3b` or `model=qwen25vl7b`",
        "model_name model_name_or_path pretrained_model_name_or_path model_path model_id pretrained weights_path "
        "pretrained_path",
    ),
    UsualName(
        "data set",
        "`data.root`",
        "with `data=jsonl` or `data=voc`",
        "dataset datasets dataset_name dataset_path dataset_dir data_path data_dir data_root train_file train_data "
        "annotation_file ann_file img_dir image_folder coco_path",
    ),
    UsualName(
        "tracking",
        "`tracker=mlflow`",
        "`tracker=jsonl` does without MLflow",
        "report_to logger loggers wandb use_wandb tensorboard use_tensorboard mlflow",
    ),
    UsualName("compilation", "`model.compile`", "", "compile torch_compile use_compile compile_model"),
    UsualName(
        "attention",
        "`model.attention`",
        "auto takes the fastest that is installed",
        "attn attention attn_implementation attention_implementation flash_attn flash_attention use_flash_attn "
        "use_flash_attention_2",
    ),
    UsualName(
        "EMA",
        "`average=ema`",
        "`average.decay` is its decay",
        "ema use_ema ema_decay model_ema model_ema_decay with_ema",
    ),
    UsualName(
        "early stopping",
        "`stopping=patience`",
        "`stopping.patience` counts evaluations",
        "early_stopping early_stop earlystopping patience early_stopping_patience es_patience",
    ),
    UsualName(
        "loss weights",
        "`loss.weights`",
        "one for each loss, such as `loss.weights.giou`",
        "loss_weights loss_weight bbox_loss_coef giou_loss_coef cls_loss_coef loss_coef box_loss_weight",
    ),
)

CHOICES: Mapping[str, Mapping[str, str]] = {
    "model": {"qwen": "qwen25vl3b", "3b": "qwen25vl3b", "7b": "qwen25vl7b", "debug": "tiny"},
    "head": {
        **dict.fromkeys(("rtdetr", "deformabledetr", "dinodetr", "groundingdino", "codetr", "dabdetr"), "dino"),
        **dict.fromkeys(("smcadetr", "conditionaldetr"), "detr"),
        "lm": "none",
    },
    "data": {"pascal": "voc", "pascalvoc": "voc", "vocdetection": "voc", "json": "jsonl"},
    "augmentation": {"flip": "flips", "hflip": "flips", "crop": "crops", "randomcrop": "crops"},
    "sampler": {"random": "fixed_samples", "curriculum": "shortest_first", "packing": "token_budget"},
    "collator": {"packing": "packed", "padding": "standard", "padded": "standard", "default": "standard"},
    "loss": {"vfl": "varifocal", "focal": "joint", "lm": "language", "ce": "language", "crossentropy": "language"},
    "optimizer": dict.fromkeys(("adam", "adamwtorch", "adamwtorchfused", "adamwhf", "fusedadamw"), "adamw"),
    "average": {"modelema": "ema", "polyak": "ema"},
    "schedule": {
        **dict.fromkeys(("cosine", "cosinewithwarmup", "cosineannealing"), "warmup_cosine"),
        "constantwithwarmup": "constant",
    },
    "stopping": {"earlystopping": "patience", "early": "patience", "never": "none"},
    "engine": dict.fromkeys(("torchrun", "accelerate", "native", "plain", "distributeddataparallel"), "ddp"),
    "tracker": {"none": "jsonl", "json": "jsonl"},
}
"""The choice of a config group that does what is usually called so; the names in small letters and digits alone."""

PROGRAM_KEYS: Mapping[str, str] = {
    "run": "model model_path run_dir run_folder folder name experiment resume",
    "images": "image input inputs source img pictures image_dir image_folder path files",
    "checkpoint": "ckpt epoch weights step",
    "split": "subset dataset",
    "batch_size": "eval_batch_size per_device_eval_batch_size val_batch_size bs batch",
    "num_workers": "dataloader_num_workers workers",
    "threshold": "conf conf_thres confidence score_threshold score_thr score_thresh",
    "max_new_tokens": "max_length max_tokens max_new_token",
    "teachers": "num_teachers shots num_shots num_examples",
    "data.root": "data_root data_path data_dir dataset_path root",
    "out": "output output_dir out_dir outdir save_dir output_path",
    "to": "out output output_dir out_dir outdir save_dir output_path save_directory export_dir target destination",
    "dtype": "torch_dtype precision data_type",
    "form": "format layout type",
    "overwrite": "force replace exist_ok overwrite_output_dir",
    "sweep": "experiment experiment_name project",
    "metric": "monitor sort_by metric_for_best_model",
    "mode": "direction greater_is_better",
    "top": "limit k topk num_rows",
    "outputs": "output_dir outdir root work_dir",
}
"""The keys of evaluate, predict, compare and export, and other words for them."""


def usual_name_of(key: str) -> UsualName | None:
    """Return the setting that a typed key usually names: by its last part, whatever its signs, dashes or capitals."""
    word = _word(key)
    return next((usual for usual in USUAL_NAMES if word in usual.words.split()), None)


def choice_of(group: str, choice: str, options: Collection[str]) -> str | None:
    """Return the choice of a config group that `choice` usually names: `qwen2.5-vl-3b`, say, is `qwen25vl3b`."""
    plain = _letters(choice)
    alike = [option for option in options if _letters(option) == plain]
    alike += [option for option in options if len(option) > 8 and _letters(option) in plain]  # a name on the hub
    usual = CHOICES.get(group, {}).get(plain)
    return alike[0] if alike else usual if usual in options else None


def program_key_of(word: str, keys: Collection[str]) -> str | None:
    """Return the one of a program's `keys` that `word` usually names."""
    plain = _word(word)
    usual = (key for key, words in PROGRAM_KEYS.items() if key in keys and plain in words.split())
    return plain if plain in keys else next(usual, None)


def table_rows() -> list[str]:
    """Return the lines of the README's table, NUM_COLUMNS settings a line."""
    cells = [f"{usual.name} | {usual.in_short}" for usual in USUAL_NAMES]
    columns = [cells[start::NUM_COLUMNS] for start in range(NUM_COLUMNS)]
    rows = [" | ".join(row) for row in zip_longest(*columns, fillvalue=" | ")]
    head = [" | ".join([column] * NUM_COLUMNS) for column in ("usual name | key", "---|---")]
    return [f"| {row} |" for row in (*head, *rows)]


def help_lines() -> list[str]:
    """Return the lines of `--help`."""
    width = max(len(usual.name) for usual in USUAL_NAMES)
    return [f"{usual.name:{width}}  {usual.in_short}".replace("`", "") for usual in USUAL_NAMES]


def option_problems(options: Sequence[str]) -> list[str]:
    """Return a problem for each word that begins with a dash and is no option of the program."""
    problems = []
    for option in options:
        usual = usual_name_of(option)
        key = option.lstrip("-").partition("=")[0].replace("-", "_")
        what = usual.answer if usual else f"Perhaps {key}=... is meant."
        problems.append(f"{option} is not an option; values are given as key=value, without dashes. {what}")
    return problems


def _word(key: str) -> str:
    return re.split(r"[./]", key.partition("=")[0].strip("+~-"))[-1].replace("-", "_").lower()


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
