"""Where an archive is kept, when that is not a table beside the live one."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Destination(BaseModel):
    """Another backend, or files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str | None = Field(
        None,
        description="Another backend of this policy, which keeps the archive in its tables.",
        examples=["warehouse"],
    )
    files: str | None = Field(
        None,
        min_length=1,
        description="A directory that keeps the archive in files; {backend} stands for the backend they come from.",
        examples=["/srv/archive"],
    )
    format: Literal["jsonl.gz", "parquet"] | None = Field(
        None,
        description="What new files are: jsonl.gz unless said, or parquet (the extra [parquet]).",
        examples=["jsonl.gz"],
    )

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if (self.backend is None) == (self.files is None):
            raise ValueError("an archive goes to a backend or to files: name one of the two")
        if self.format is not None and self.files is None:
            raise ValueError("format is for files: a backend keeps the archive in tables")
        return self
