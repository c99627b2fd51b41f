"""A progress bar, for those who ask for one."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def with_progress(items: Sequence[T], progress: bool) -> Iterable[T]:
    """The items, under a tqdm bar if asked for."""
    if not progress:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(items, desc="solve", unit="step")  # type: ignore[no-any-return]
