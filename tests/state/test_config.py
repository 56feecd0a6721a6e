"""Loading the configuration: YAML, environment, command line, and what each mistake says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.config_file import ConfigError, dump, load
from interlace_state.settings.limits import LimitChanges, TenantConfig
from interlace_state.settings.services import BatchingConfig

Written = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a configuration file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "interlace.yaml"
        path.write_text(text)
        return path

    return write


def mistake(path: Path | None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return str(caught.value)


def test_nothing_given_is_the_defaults() -> None:
    assert load(None, {}) == Config()


def test_an_empty_file_is_the_defaults(written: Written) -> None:
    assert load(written("# nothing yet\n"), {}) == Config()


def test_values_from_the_file(written: Written) -> None:
    config = load(written("runtime: process\nlimits: {wall_seconds: 15}\nmodels:\n  - source: org/name\n"), {})
    assert (config.runtime, config.limits.wall_seconds) == ("process", 15)
    assert [model.source for model in config.models] == ["org/name"]


def test_environment_over_file_and_command_line_over_environment(written: Written) -> None:
    path = written("gateway: {host: 10.0.0.1, port: 1, public_url: 'https://a'}")
    environ = {"INTERLACE_GATEWAY__HOST": "10.0.0.2", "INTERLACE_GATEWAY__PORT": "2", "HOME": "/root"}
    gateway = load(path, environ, {"gateway.port": 3}).gateway
    assert (gateway.public_url, gateway.host, gateway.port) == ("https://a", "10.0.0.2", 3)


def test_environment_reaches_nested_keys() -> None:
    environ = {"INTERLACE_LIMITS__WALL_SECONDS": "15", "INTERLACE_RUNTIME": "process", "INTERLACE_CONFIG": "/some.yaml"}
    config = load(None, environ)
    assert (config.limits.wall_seconds, config.runtime) == (15.0, "process")


def test_environment_values_keep_their_text() -> None:
    config = load(None, {"INTERLACE_GATEWAY__MIN_PYTHON": "3.10", "INTERLACE_MODELS": "[{source: a, revision: '12'}]"})
    assert (config.gateway.min_python, config.models[0].revision) == ("3.10", "12")


def test_environment_null_and_empty() -> None:
    environ = {"INTERLACE_REDIS__URL": "null", "INTERLACE_STORE__URL": "", "INTERLACE_GATEWAY__PORT": " "}
    assert load(None, environ) == Config()


def test_environment_list_as_yaml() -> None:
    config = load(None, {"INTERLACE_MODELS": "[{source: org/a}, {source: org/b, replicas: 2}]"})
    assert [(model.source, model.replicas) for model in config.models] == [("org/a", 1), ("org/b", 2)]


def test_environment_list_by_index() -> None:
    sources = {f"INTERLACE_MODELS__{n}__SOURCE": f"org/m{n}" for n in reversed(range(11))}
    config = load(None, sources | {"INTERLACE_MODELS__10__TRUST_REMOTE_CODE": "true"})
    assert [model.source for model in config.models] == [f"org/m{n}" for n in range(11)]
    assert [model.trust_remote_code for model in config.models] == [False] * 10 + [True]


def test_environment_changes_one_item_of_the_file(written: Written) -> None:
    path = written("models:\n  - source: org/a\n  - source: org/b\n")
    models = load(path, {"INTERLACE_MODELS__1__DTYPE": "bfloat16"}).models
    assert [(model.source, model.dtype) for model in models] == [("org/a", "float32"), ("org/b", "bfloat16")]


def test_a_secret_lies_in_a_file_that_the_environment_names(tmp_path: Path) -> None:
    secret = tmp_path / "redis_url"
    secret.write_text("redis://:geheim@redis:6379/0\n")
    config = load(None, {"INTERLACE_REDIS__URL__FILE": str(secret)})
    assert config.redis.url == "redis://:geheim@redis:6379/0"
    with pytest.raises(ConfigError, match=r"INTERLACE_REDIS__URL__FILE: .*/gone: No such file"):
        load(None, {"INTERLACE_REDIS__URL__FILE": str(tmp_path / "gone")})


def test_environment_list_with_a_gap() -> None:
    said = mistake(None, {"INTERLACE_MODELS__3__SOURCE": "org/a"})
    assert said == "environment variable INTERLACE_MODELS__3__SOURCE: 3 is not an item of the list; the next one is 0."


def test_a_wrong_key_names_line_key_suggestion_and_allowed_keys(written: Written) -> None:
    path = written("runtime: process\nlimits:\n  wall_second: 15\n")
    said = mistake(path)
    assert said.startswith(
        f"{path}, line 3: unknown key `limits.wall_second`. Did you mean `wall_seconds`? Allowed here:"
    )
    assert all(key in said for key in ("wall_seconds", "memory_bytes", "payload_bytes"))


def test_a_wrong_key_at_the_top(written: Written) -> None:
    said = mistake(written("\nlimts: {wall_seconds: 1}\n"))
    assert "line 2: unknown key `limts`. Did you mean `limits`?" in said
    assert "runtime, models, on_demand" in said


def test_a_wrong_key_in_a_list(written: Written) -> None:
    said = mistake(written("models:\n  - source: org/a\n  - source: org/b\n    revison: main\n"))
    assert "line 4: unknown key `models[1].revison`. Did you mean `revision`? Allowed here: source," in said


def test_a_wrong_value_names_line_key_and_what_is_allowed(written: Written) -> None:
    said = mistake(written("gateway:\n  port: 8000\nruntime: slurm\n"))
    assert "line 3: `runtime`: Input should be 'ray' or 'process' (got 'slurm')." in said


def test_a_value_out_of_bounds(written: Written) -> None:
    said = mistake(written("gateway:\n  port: 70000\n"))
    assert "line 2: `gateway.port`: Input should be less than or equal to 65535 (got 70000)." in said


@pytest.mark.parametrize("key", ["wall_seconds", "memory_bytes", "payload_bytes"])
def test_a_limit_that_lets_nothing_through(written: Written, key: str) -> None:
    assert f"line 1: `limits.{key}`: " in (said := mistake(written(f"limits: {{{key}: -1}}\n")))
    assert "should be greater than 0" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [{source: a, repo_id: 'my model!'}]", "`models[0].repo_id`: expected 'name' or 'org/name'"),
        ("models: [{source: a, repo_id: a/../b}]", "`models[0].repo_id`: expected 'name' or 'org/name'"),
        ("models: [{source: a, revision: ../main}]", "`models[0].revision`: expected a branch, a tag or a commit"),
        ("models: [{source: a, task: Fill Mask}]", "`models[0].task`: expected a task such as 'text-generation'"),
        ("gateway: {min_nnsight: abc}", "`gateway.min_nnsight`: expected a version, e.g. '3.10' (got 'abc')."),
        ("gateway: {min_python: 3.10.0.0.1}", "`gateway.min_python`: expected a version"),
        ("gateway: {public_url: lab.example}", "`gateway.public_url`: expected http://HOST or https://HOST"),
        ("gateway: {drain_seconds: .inf}", "`gateway.drain_seconds`: Input should be a finite number"),
        ("redis: {url: localhost}", "`redis.url`: expected a redis://, rediss:// or unix:// URL"),
        ("redis: {url: 'redis://h:many/0'}", "`redis.url`: Port could not be cast to integer"),
        ("limits: {wall_seconds: .inf}", "`limits.wall_seconds`: Input should be a finite number"),
        ("limits: {memory_bytes: 99999999999999999999}", "`limits.memory_bytes`: should be at most"),
        ("lifetimes: {lease: .inf}", "`lifetimes.lease`: Input should be a finite number"),
        ("lifetimes: {lease: .nan}", "`lifetimes.lease`: Input should be a finite number"),
        ("lifetimes: {result: 9999999999}", "`lifetimes.result`: Input should be less than or equal to"),
    ],
)
def test_a_value_that_nothing_could_work_with(written: Written, text: str, said: str) -> None:
    assert f"line 1: {said}" in mistake(written(text))


def test_what_a_key_may_name_is_a_repo_id_a_revision_and_a_task(written: Written) -> None:
    text = "{source: ./x, repo_id: org/Name-1.5_b, revision: refs/pr/7, task: fill-mask}"
    [model] = load(written(f"models: [{text}]"), {}).models
    key = ModelKey(repo_id=model.repo_id or "", revision=model.revision, task=model.task)
    assert ModelKey.parse(key.canonical) == key


def test_a_mistake_never_shows_a_password(written: Written) -> None:
    said = mistake(written("redis: {url: 'reddis://:hunter2@redis.lab:6379/0'}"))
    assert said.endswith("(got 'reddis://***@redis.lab:6379/0').")
    assert "hunter2" not in mistake(written("redis: {url: 'reddis://redis.lab?db=1&password=hunter2'}"))


def test_a_cluster_needs_a_store_that_its_machines_share(written: Written) -> None:
    path = written("redis: {url: 'redis://h'}\nray:\n  address: auto\n")
    assert mistake(path).startswith(
        f"{path}, line 3: `ray.address` lets replicas run on other machines: set `store.url`"
    )
    assert load(path, {"INTERLACE_STORE__URL": "/shared"}).store_url == "/shared"
    assert load(path, {"INTERLACE_RUNTIME": "process"}).ray.address == "auto"


@pytest.mark.parametrize(
    ("text", "line"),
    [("lifetimes:\n  waiting: 300\n", 2), ("limits:\n  wall_seconds: 604800\n", 2)],
)
def test_a_job_is_not_forgotten_while_it_runs(written: Written, text: str, line: int) -> None:
    path = written(text)
    said = mistake(path)
    assert said.startswith(f"{path}, line {line}: `lifetimes.waiting` (")
    assert "should be longer than `limits.wall_seconds` (" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("autoscale: {least: 3, most: 2}", "`models[0].autoscale`: `least` is 3 and `most` is 2: set `most` to 3 or"),
        ("autoscale: {most: 0}", "`models[0].autoscale.most`: Input should be greater than or equal to 1"),
        ("autoscale: {max: 2}", "unknown key `models[0].autoscale.max`. Allowed here: least, most, jobs_per_replica"),
        ("autoscale: {idle_second: 2}", "Did you mean `idle_seconds`?"),
        ("replicas: 2, autoscale: {most: 4}", "`models[0]` has both `replicas` and `autoscale`: leave `replicas` out"),
    ],
)
def test_an_autoscale_that_cannot_be(written: Written, text: str, said: str) -> None:
    path = written(f"models: [{{source: org/a, {text}}}]")
    assert said in mistake(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("device: cuda", "`device` is cuda, and a model on a GPU cannot be shared with a hardened process"),
        ("device: gpu", "expected cpu, cuda, cuda:0 or auto"),
        ("executor: resident", "name the tenants that you trust with the service's account in `trusted`"),
        ("executor: resident, trusted: [lab], slots: 2", "a resident model runs one job at a time: `slots` is 2"),
        ("trusted: [lab]", "`trusted` is for resident models: set `executor: resident`"),
    ],
)
def test_a_resident_model_that_cannot_be(written: Written, text: str, said: str) -> None:
    assert said in mistake(written(f"models: [{{source: org/a, {text}}}]"))


def test_isolation_that_is_required_leaves_no_room_for_a_resident_model(written: Written) -> None:
    resident = "models: [{source: org/a, executor: resident, trusted: [lab], device: cuda}]"
    assert load(written(resident), {}).models[0].device == "cuda"
    assert "leaves no room for resident models" in mistake(written(f"isolation: required\n{resident}"))


def test_autoscale_survives_its_way_to_a_process(written: Written) -> None:
    config = load(written("models: [{source: org/a, autoscale: {most: 2}}]"), {})
    again = load(written(dump(config)), {})
    assert again == config
    assert (again.models[0].first_replicas, again.models[0].most_replicas) == (0, 2)


def test_a_model_that_is_listed_twice(written: Written) -> None:
    path = written("models:\n  - source: org/a\n  - source: org/b\n  - source: org/a\n    dtype: bfloat16\n")
    assert (
        mistake(path) == f"{path}, line 4: `models[2]` is `models[0]` again (org/a): for more copies, set `replicas`."
    )
    load(written("models: [{source: org/a}, {source: org/a, revision: v2}, {source: org/a, task: fill-mask}]"), {})


@pytest.mark.parametrize("text", ["models: &all [*all]\n", "limits: &all {wall_seconds: *all}\n", f"a: {'[' * 2000}"])
def test_yaml_that_never_ends(written: Written, text: str) -> None:
    assert "nested too deeply, or an alias (`*name`) is inside of what it names" in mistake(written(text))


def test_an_environment_value_that_never_ends() -> None:
    assert mistake(None, {"INTERLACE_MODELS": "&all [*all]"}).startswith("environment variable INTERLACE_MODELS: ")
    assert mistake(None, {"INTERLACE_MODELS": "[" * 2000}).startswith("environment variable INTERLACE_MODELS: not a")


def test_folders_come_from_the_environment_that_is_given(monkeypatch: pytest.MonkeyPatch, written: Written) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/of/this/process")
    monkeypatch.setenv("HOME", "/home/me")
    assert load(None, {}).state_dir == Path("/home/me/.local/state/interlace")
    config = load(None, {"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"})
    assert (config.state_dir, config.cache_dir) == (Path("/s/interlace"), Path("/c/interlace"))
    file = written("state_dir: /mine\n")
    environ = {"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c", "INTERLACE_CACHE_DIR": "/other"}
    config = load(file, environ)
    assert (config.state_dir, config.cache_dir) == (Path("/mine"), Path("/other"))


def test_every_mistake_has_a_line(written: Written) -> None:
    said = mistake(written("runtime: slurm\ngateway: {port: many}\nfoo: 1\n"), {"INTERLACE_LIFETIMES__LEASE": "0"})
    lines = said.splitlines()
    assert len(lines) == 4
    assert {line.split(":")[0].rsplit(", ")[-1] for line in lines} == {
        "line 1",
        "line 2",
        "line 3",
        "environment variable INTERLACE_LIFETIMES__LEASE",
    }


def test_a_missing_key(written: Written) -> None:
    assert mistake(written("models:\n  - repo_id: org/a\n")).endswith("line 2: `models[0].source` is missing.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gateway: 8000\n", "line 1: `gateway`: expected keys (host, port,"),
        ("models: gpt2\n", "line 1: `models`: expected a list, got 'gpt2'."),
        ("models:\n  - gpt2\n", "line 2: `models[0]`: expected keys (source, repo_id,"),
        ("models: {source: gpt2}\n", "line 1: `models`: expected a list, got {'source': 'gpt2'}."),
    ],
)
def test_a_value_of_the_wrong_shape(written: Written, text: str, said: str) -> None:
    assert said in mistake(written(text))


def test_a_key_that_is_there_twice(written: Written) -> None:
    path = written("runtime: ray\ngateway: {}\nruntime: process\n")
    assert mistake(path) == f"{path}, line 3: `runtime` is there twice: it is at {path}, line 1 too."


def test_a_wrong_environment_key() -> None:
    said = mistake(None, {"INTERLACE_LIMTS__WALL_SECONDS": "3"})
    assert said.startswith("environment variable INTERLACE_LIMTS__WALL_SECONDS: unknown key `limts`.")
    assert "Did you mean `limits`? Allowed here: runtime," in said


def test_a_single_underscore_in_an_environment_key() -> None:
    said = mistake(None, {"INTERLACE_LIMITS_WALL_SECONDS": "3"})
    assert "Did you mean `limits.wall_seconds` (INTERLACE_LIMITS__...)?" in said


def test_a_wrong_environment_value() -> None:
    said = mistake(None, {"INTERLACE_LIMITS__WALL_SECONDS": "soon"})
    assert said.startswith(
        "environment variable INTERLACE_LIMITS__WALL_SECONDS: `limits.wall_seconds`: Input should be"
    )
    assert said.endswith("(got 'soon').")


def test_an_environment_list_that_is_none() -> None:
    assert mistake(None, {"INTERLACE_MODELS": "[{source: a"}) == (
        "environment variable INTERLACE_MODELS: not a YAML list or mapping: '[{source: a'"
    )


def test_not_yaml(written: Written) -> None:
    path = written("runtime: process\ngateway: [port\n")
    assert mistake(path).startswith(f"{path}, line 3: not YAML: ")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_not_a_mapping(written: Written, text: str) -> None:
    assert "line 1: expected `key: value` pairs; keys: runtime, models," in mistake(written(text))


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.getcwd []\n", "? [a, b]\n: 1\n", "a: \x00\n"])
def test_yaml_that_is_not_plain_data(written: Written, text: str) -> None:
    assert "not YAML: " in mistake(written(text))


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "interlace.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert mistake(path) == f"{path}: not a text file (UTF-8)"


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.yaml"
    assert mistake(path) == f"{path}: No such file or directory"


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"{tmp_path}: Is a directory"


def test_folders_are_absolute_and_know_the_home(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load(written("state_dir: ~/state\ncache_dir: cache\n"), {})
    assert (config.state_dir, config.cache_dir) == (Path("/home/me/state"), Path.cwd() / "cache")


def test_a_dumped_configuration_loads_as_it_was(written: Written) -> None:
    environ = {
        "INTERLACE_MODELS": "[{source: org/a}]",
        "INTERLACE_GATEWAY__PORT": "0",
        "INTERLACE_REDIS__URL": "unix:///r",
    }
    config = load(None, environ)
    assert load(written(dump(config)), {}) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().gateway.port = 1


def test_a_tenant_may_differ_on_sharing_a_forward() -> None:
    config = Config(tenants={"alone": TenantConfig(batching=False), "other": TenantConfig(weight=2)})
    assert [config.batches(tenant) for tenant in ("alone", "other", "unknown")] == [False, True, True]
    off = Config(batching=BatchingConfig(enabled=False), tenants={"keen": TenantConfig(batching=True)})
    assert [off.batches(tenant) for tenant in ("keen", "unknown")] == [True, False]
    assert config.limits_of("alone", "user") == config.limits


@pytest.mark.parametrize("value", [True, False])
def test_a_limit_is_a_number_and_no_truth(value: bool) -> None:
    """Pydantic takes true for 1."""
    with pytest.raises(ValidationError, match="expected a number"):
        LimitChanges.model_validate({"running_jobs": value})
    assert TenantConfig.model_validate({"batching": value}).batching is value
