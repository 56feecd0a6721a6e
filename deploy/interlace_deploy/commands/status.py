"""`interlace status`: what runs, from the gateway's own words."""

import argparse
import asyncio
import json
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from interlace.protocol.model import ModelKey
from interlace_deploy.parts.rundir import RunDir
from interlace_deploy.problems import CommandProblem, NotRunning
from interlace_deploy.screen import show_table
from interlace_deploy.target import Target, target
from interlace_state.config import Config
from interlace_state.config_file import ConfigError, load

_PATIENCE = 10.0  # seconds
_STATES = {"RUNNING": "ready", "DEPLOYING": "deploying", "UNHEALTHY": "failed", "NOT_STARTED": "scaled to zero"}


def run(arguments: argparse.Namespace) -> int:
    """The command. Raises NotRunning where nothing answers."""
    asked = target(arguments)
    report = _report(asked)
    if (known := _of_queue(asked)) is not None:
        for model, jobs in zip(report["models"], asyncio.run(_jobs(known, report["models"])), strict=True):
            model["jobs"] = jobs
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    return 0


def _report(asked: Target) -> dict[str, Any]:
    url = asked.url
    readiness, overview = _get(url, "/readyz", (200, 503)), _get(url, "/status", (200,))
    return {
        "url": url,
        "pid": asked.running.pid if asked.running else None,
        "ready": readiness["ready"],
        "detail": readiness["detail"],
        "models": _models(overview),
    }


def _of_queue(asked: Target) -> Config | None:
    """The configuration with the Redis of what runs; None where we are not told which one it is."""
    if (config := asked.config) is None or (asked.running is None and config.redis.url is None):
        return None
    if asked.running is None:
        return config
    try:
        return load(RunDir(config.state_dir).config, {})
    except ConfigError:  # it has stopped since we looked
        return None


async def _jobs(config: Config, models: list[dict[str, Any]]) -> list[int | None]:
    """How many jobs of each model wait or run; None for all where its Redis does not say."""
    from redis.exceptions import RedisError  # which whoever asks a server elsewhere may lack

    try:
        async with import_module("interlace_state.store").open_state(config) as state:
            return [await state.queue.length(ModelKey.parse(model["model_key"])) for model in models]
    except (RedisError, OSError, ConfigError):
        return [None] * len(models)


def _models(overview: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each model, from `/status`, which has one for each replica."""
    held = {
        replica_id: {
            "resident_bytes": replica.get("resident_bytes", 0),
            "node": name,
            "holder": replica.get("holder") or replica_id,
        }
        for name, node in overview["cluster"]["nodes"].items()
        for replicas in node["deployments"].values()
        for replica_id, replica in replicas.items()
    }
    models: dict[str, dict[str, Any]] = {}
    for deployment in overview["deployments"].values():
        facts = {name: deployment.get(name) for name in ("repo_id", "revision", "task", "dtype", "n_params", "failure")}
        fresh = {"model_key": deployment["model_key"], "state": "deploying", "replicas": [], "jobs": None}
        model = models.setdefault(deployment["model_key"], fresh | facts)
        state = _STATES[deployment["application_state"]]
        if model["state"] != "ready":
            model["state"] = state
        model["phase"] = deployment.get("phase")
        model["paused"] = deployment.get("paused", False)
        if (replica_id := deployment["replica_id"]) in held:
            drained = deployment.get("drained", False)
            replica = {"id": replica_id, "state": state, "drained": drained, **held[replica_id]}
            model["replicas"].append(replica)
    return sorted(models.values(), key=lambda model: str(model["repo_id"]))


def _get(url: str, path: str, fine: tuple[int, ...]) -> dict[str, Any]:
    """A JSON object from the gateway; no proxy of the environment is asked on the way to our own machine."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status not in fine:
            raise CommandProblem(f"{url}{path} answered {response.status}: {body[:200].decode(errors='replace')}")
        found: dict[str, Any] = json.loads(body)
        return found
    except ConnectionRefusedError:
        raise NotRunning(
            f"Nothing runs at {url}. Start it with: interlace up; or name another server: --url, or NDIF_HOST"
        ) from None
    except (OSError, HTTPException) as error:
        raise NotRunning(f"{url} does not answer: {error or type(error).__name__}") from None
    except ValueError:
        raise CommandProblem(f"{url}{path} did not answer as Interlace does; is it something else?") from None
    finally:
        connection.close()


def _show(report: dict[str, Any]) -> None:
    process = f" (process {report['pid']})" if report["pid"] else ""
    print(f"Interlace at {report['url']}{process}: {'ready' if report['ready'] else 'not ready'}")
    rows = [
        (
            model["repo_id"],
            model["revision"],
            model["task"] or "",
            model["dtype"],
            f"{model['state']}, paused" if model["paused"] else model["state"],
            _replicas(model["replicas"]),
            "?" if model["jobs"] is None else str(model["jobs"]),
            f"{_resident_bytes(model['replicas']) / (1 << 20):.0f} MiB",
        )
        for model in report["models"]
    ]
    if rows:
        show_table(("model", "revision", "task", "dtype", "state", "replicas", "jobs", "memory"), rows)
    for model in report["models"]:
        if model["state"] == "failed":
            print(f"{model['repo_id']}: {model['failure']}")


def _resident_bytes(replicas: list[dict[str, Any]]) -> int:
    """Of the processes that hold the weights, which replicas may share."""
    return sum({(one["node"], one["holder"]): one["resident_bytes"] for one in replicas}.values())


def _replicas(replicas: list[dict[str, Any]]) -> str:
    drained = sum(replica["drained"] for replica in replicas)
    return f"{len(replicas)}, {drained} drained" if drained else str(len(replicas))
