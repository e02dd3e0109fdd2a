"""The modules that the fork server of forked.py imports once: those of runs with default components, and of sweeps."""

from importlib import import_module

from heap import freeze_heap

from bbu_train.tracker.mlflow_store import silence_mlflow

silence_mlflow()  # MLflow reads the environment when it is imported
COMPONENTS = (
    "augmentation.none average.none checkpoint.local collator.packed conversation.order data.cabinets.synthetic",
    "engine.ddp head.detr loss.joint model.preprocessing model.qwen25vl optimizer.adamw sampler.fixed_samples",
    "schedule.warmup_cosine tracker.mlflow",
)
OTHERS = (
    "pytest bbu_train.train launchers.job launchers.launch launchers.preflight.child",
    "mlflow.store.tracking.sqlalchemy_store mlflow.store.tracking.rest_store",
    "matplotlib.figure matplotlib.projections matplotlib.backends.backend_agg",
)
for name in [f"bbu_train.{component}" for line in COMPONENTS for component in line.split()]:
    import_module(name)
for name in [name for line in OTHERS for name in line.split()]:
    import_module(name)
freeze_heap()
