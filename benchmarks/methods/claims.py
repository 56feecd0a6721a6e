"""What an experiment must show, said before it is run, and a table of what it has shown."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import service


@dataclass(frozen=True)
class Claim:
    says: str
    #: Of one model's figures.
    holds: Callable[[Mapping[str, Any]], bool]
    #: The models that it is of: any whose name begins so.
    of: str = ""


def judged(claims: Sequence[Claim], figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each claim with the models for which it holds and those for which it fails; printed, too."""
    found = []
    for claim in claims:
        mine = {name: of for name, of in figures.items() if name.startswith(claim.of)}
        failed = [name for name, of in mine.items() if not claim.holds(of)]
        found.append({"claim": claim.says, "held": len(mine) - len(failed), "of": len(mine), "failed": failed})
        mark = "ok    " if not failed else "FAILED"
        print(
            f"{mark} {len(mine) - len(failed)}/{len(mine)}  {claim.says}"
            + (f"  ({', '.join(failed)})" if failed else "")
        )
    return found


def written(file: Path | None, figures: Mapping[str, Any], verdicts: Sequence[Any], **more: Any) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {"circumstances": service.circumstances(), "claims": verdicts, "figures": figures, **more}
        file.write_text(json.dumps(told, indent=1) + "\n")


def smollm2() -> Any:
    """SmolLM2-135M-Instruct in fp32, on one thread."""
    import torch

    torch.set_num_threads(1)
    return service.local_model("smollm2-135m-instruct")
