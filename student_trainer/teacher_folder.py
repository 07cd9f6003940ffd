"""A teacher whose configuration lies elsewhere than its weights, as one folder."""

from pathlib import Path


def link_with_config(model_path: str, config_path: str, folder: Path) -> str:
    """Links the files of a checkpoint and another's config.json into a folder.

    Args:
        model_path: folder with weights and tokenizer.
        config_path: folder with config.json, or the file itself.
        folder: empty or new.

    Returns:
        The folder; model_path as it is, where both are the same.

    Raises:
        ValueError: one of them is not a folder on this machine, or has no config.json.
    """
    if model_path == config_path:
        return model_path
    model, config = Path(model_path).expanduser(), Path(config_path).expanduser()
    config_file = config / "config.json" if config.is_dir() else config
    if not model.is_dir() or not config_file.is_file():
        raise ValueError(
            f"teacher_config_path is {config_path!r} and teacher_model_path {model_path!r}: where "
            "they differ, both must be folders on this machine, the first with a config.json"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.resolve().iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    (folder / "config.json").symlink_to(config_file.resolve())
    return str(folder)
