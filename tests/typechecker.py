"""The check that runs on every annotated function of bbu_train while the tests run."""

from warnings import filterwarnings

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

# omegaconf's own types, which we only name.
filterwarnings("ignore", category=BeartypeDecorHintPep585DeprecationWarning)

# As PEP 484 has it, an int may stand for a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
