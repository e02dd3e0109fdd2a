"""A trained model as a folder that stock transformers and its servers load: `python -m bbu_train.export`."""
