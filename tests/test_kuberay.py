"""Risk: a manifest that KubeRay refuses, reads otherwise than it was meant, or that shows a key."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import manifests
from launch.places import base, kuberay
from launch.places.kuberay import Config
from tests import kuberay_schema
from trainer.config import load, resolve, shipped
from trainer.settings import override

WORKERS = {"cpus": 8, "memory": "64Gi", "gpus": "8xH100-80GB"}
SITE: dict[str, Any] = {
    "image": "registry.example.com/laconic:1",
    "volume": {"claim": "runs"},
    "workers": [WORKERS],
}
KEY = "0123456789abcdef0123456789abcdef01234567"
TINY = load("grpo/find", ["output=/runs"])


def order(recipe: str = "grpo/find", *words: str, name: str = "job") -> base.Order:
    words = ("output=/runs", *words)
    return base.Order(recipe, words, load(recipe, words), name)


def made(what: base.Order | None = None, **site: Any) -> list[dict[str, Any]]:
    return manifests.documents(what or order(), Config(**SITE | site))


def container(document: dict[str, Any], group: int = 0) -> dict[str, Any]:
    return kuberay_schema.templates(document)[group]["spec"]["containers"][0]


# --- the schema ---------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
AMOUNTS = st.sampled_from(["1", "500M", "64Gi", "1.5Ti"])
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
VALUES = PRINTABLE | st.sampled_from(["y", "on", "no", "1e3", "0o17", "1_000", ".5", "~", "", "<<"])
VARIABLES = st.from_regex(r"X_[A-Z0-9_]{1,10}", fullmatch=True)


def machines(**more: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"cpus": st.integers(1, 256), "memory": st.sampled_from(["8Gi", "900Gi", "1.5Ti"])},
        optional={
            "gpus": st.sampled_from(["8xH100-80GB", "1x24GB", None]),
            "shm": st.sampled_from(["1Gi", "4G", None]),
            "resources": st.dictionaries(st.just("rdma/ib"), st.just("1")),
            "node_selector": st.dictionaries(NAMES, NAMES, max_size=2),
            "tolerations": st.lists(st.just({"key": "gpu", "operator": "Exists"}), max_size=2),
            "annotations": st.dictionaries(NAMES, VALUES, max_size=2),
            "pod": st.sampled_from([{}, {"hostNetwork": True, "priorityClassName": "high"}]),
            "container": st.sampled_from([{}, {"securityContext": {"runAsUser": 1000}}]),
            **more,
        },
    )


@st.composite
def groups(draw: st.DrawFn) -> list[dict[str, Any]]:
    out = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        least, replicas, most = sorted(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
        bounds = draw(st.sampled_from([{}, {"min": least}, {"min": least, "max": most}]))
        out.append(draw(machines()) | {"name": name, "replicas": replicas} | bounds)
    return out


SITES = st.fixed_dictionaries(
    {
        "image": st.just("registry.example.com/laconic@sha256:0"),
        "volume": st.fixed_dictionaries(
            {"claim": NAMES},
            optional={"size": AMOUNTS, "mount": st.sampled_from(["/runs", "/mnt/team/runs"])},
        ),
        "workers": groups(),
    },
    optional={
        "head": machines(),
        "kind": st.sampled_from(["RayJob", "RayCluster"]),
        "namespace": NAMES,
        "image_pull_secrets": st.lists(NAMES, max_size=2),
        "service_account": NAMES,
        "secrets": st.dictionaries(st.just("WANDB_API_KEY"), st.sampled_from(["wandb", "w/k"])),
        "env": st.dictionaries(VARIABLES, VALUES, max_size=4),
        "data": st.dictionaries(st.sampled_from(["/models", "/data/x"]), NAMES),
        "labels": st.dictionaries(NAMES, NAMES, max_size=2),
        "retries": st.integers(0, 9),
        "deadline": st.integers(1, 10**6),
        "ttl": st.integers(0, 10**5),
        "queue": NAMES,
    },
)


@pytest.mark.filterwarnings("ignore:.*has no effect")
@settings(deadline=None, max_examples=20)
@given(SITES, NAMES, st.booleans())
def test_what_any_site_file_gives_is_valid(site: Any, name: str, shipped: bool) -> None:
    config = Config(**site)
    resolved = TINY.model_copy(update={"output": config.volume.mount})
    recipe = "grpo/find" if shipped else __file__.replace(".py", ".none")
    found = manifests.documents(base.Order(recipe, ("a=b",), resolved, name), config)
    kuberay_schema.check(found)
    assert list(yaml.safe_load_all(manifests.text(found))) == found
    assert found[-1]["kind"] == config.kind
    cluster = found[-1]["spec"].get("rayClusterSpec", found[-1]["spec"])
    pods = [one["spec"]["containers"][0] for one in kuberay_schema.templates(found[-1])]
    assert all(one["resources"]["requests"] == one["resources"]["limits"] for one in pods[:-1])
    for group, asked in zip(cluster["workerGroupSpecs"], config.workers, strict=True):
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == (asked.gpus and asked.gpus.split("x")[0])


@pytest.mark.slow
def test_what_any_recipe_gives_is_valid() -> None:
    for name in shipped():
        kuberay_schema.check(made(order(name)))


def test_a_misspelt_field_is_found() -> None:
    """The schemas, not what is written."""
    for path in ("spec", "spec.rayClusterSpec", "spec.rayClusterSpec.headGroupSpec"):
        document = made()[-1]
        at = document
        for key in path.split("."):
            at = at[key]
        at["replica"] = 1
        with pytest.raises(Exception, match="replica"):
            kuberay_schema.check([document])
    for where in (0, 1, 2):
        document = made()[-1]
        container(document, where)["imagePullPolice"] = "Always"
        with pytest.raises(Exception, match="imagePullPolice"):
            kuberay_schema.check([document])


@pytest.mark.slow
def test_ray_knows_how_it_is_started() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    spec = made()[-1]["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


# --- how it is read -----------------------------------------------------------------------------

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


@kubectl
@settings(deadline=None, max_examples=5)
@given(st.lists(PRINTABLE, max_size=30))
def test_kubernetes_reads_the_strings_that_were_meant(tmp_path_factory: Any, values: Any) -> None:
    """By its own YAML reader, which takes y for true and 1e3 for a number."""
    traps = ["y", "N", "on", "no", "~", "null", "<<", "=", "-", "NaN", ".inf", "2026-01-01"]
    traps += ["1e3", "0o17", "0x1f", "1_000", "012", ".5", "+1", "1:30"]
    traps += ["", " x ", "a: b", "# x", "x\n y\n", "\ty", "\n", "x\r", "\x85", "\u2028", "\ufeff"]
    env = {f"X{i}": value for i, value in enumerate([*traps, *values])}
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(manifests.text(made(env=env)), encoding="utf-8")
    command = ["kubectl", "annotate", "--local", "-f", str(path), "x=y", "-o", "json"]
    read = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    del read["metadata"]["annotations"]
    assert read == made(env=env)[-1]


def expanded(text: str, known: dict[str, str]) -> str:
    """What Kubernetes makes of an argument: $(NAME) where it knows the name, and $ of $$."""

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def shell(text: str) -> list[str]:
    """The words that a shell makes of it."""
    script = f'words() {{ printf "%s\\0" "$@"; }}\nwords {text}'
    done = subprocess.run(["bash", "-ec", script], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@settings(deadline=None, max_examples=25)
@given(st.lists(PRINTABLE | st.text("$()'\"`\\ \nHOME", max_size=12), min_size=1, max_size=6))
def test_a_setting_arrives_as_it_was_written(words: list[str]) -> None:
    """Through Kubernetes, the submitter's shell, Ray's command line (shlex.join) and the head's."""
    meant = ["laconic", "train", "grpo/find", *words, "--address", "auto"]
    one = manifests.entrypoint(base.Order("grpo/find", tuple(words), TINY, "job"))
    assert shell(shlex.join(shell(expanded(one, {"HOME": "/gone", "": "gone"})))) == meant


def test_own_recipe_travels_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it extends, and under the name that it has here."""
    monkeypatch.chdir(tmp_path)
    Path("parent.yaml").write_text("extends: length/find\noptim: {lr: 1.0e-3}\nseed: 3\n")
    Path("mine.yaml").write_text("extends: parent.yaml\nsteps: 7 # few\n")
    what = order("mine.yaml", "optim.lr=2e-3")
    recipe, job = made(what)
    kuberay_schema.check([recipe, job])
    words = shlex.split(job["spec"]["entrypoint"])
    assert words == ["laconic", "train", "/etc/laconic/recipe.yaml", *what.settings, *words[-2:]]
    raw = yaml.safe_load(recipe["data"]["recipe.yaml"])
    assert resolve(override(raw, what.settings)) == what.resolved
    volumes = kuberay_schema.templates(job)[0]["spec"]["volumes"]
    assert {"name": "recipe", "configMap": {"name": recipe["metadata"]["name"]}} in volumes
    assert [one["kind"] for one in made(order("grpo/find"))] == ["RayJob"]


def test_a_claim_is_made_where_a_size_is_given() -> None:
    claim, job = made(volume={"claim": "new", "size": "1Ti", "storage_class": "fast"})
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}}
    assert claim["spec"] == spec | {"storageClassName": "fast"}
    assert claim["metadata"] == {"name": "new"}  # of no job
    for template in kuberay_schema.templates(job)[:2]:
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"] == {"claimName": "new"}
    assert [one["kind"] for one in made()] == ["RayJob"]


def test_a_pod_has_time_for_the_checkpoint() -> None:
    job = made(order("grpo/find", "checkpoint.grace=99.5"))[-1]
    for template in kuberay_schema.templates(job)[:2]:
        spec = template["spec"]
        script = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        waits = int(re.match(r"left=(\d+)", script)[1])  # type: ignore[index]
        assert 100 < waits < spec["terminationGracePeriodSeconds"]
    stop = [v["value"] for v in container(job)["env"] if v["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(stop[0]) >= 100  # Ray's own is 3


def test_only_a_head_with_gpus_takes_part() -> None:
    spec = made()[-1]["spec"]["rayClusterSpec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableInTreeAutoscaling" not in spec
    there = kuberay.hardware(Config(**SITE)).cluster
    assert (there.gpus, there.nodes[0].cpus) == ((0, 8), 0)
    head = {"cpus": 32, "memory": "64Gi", "gpus": "8x80GB"}
    spec = made(head=head, workers=[WORKERS | {"min": 1, "max": 4}])[-1]["spec"]["rayClusterSpec"]
    assert "num-cpus" not in spec["headGroupSpec"]["rayStartParams"]
    assert spec["enableInTreeAutoscaling"] is True
    there = kuberay.hardware(Config(**SITE | {"head": head})).cluster
    assert (there.gpus, there.nodes[0].cpus) == ((8, 8), 32)
    assert {node.gpu_bytes for node in there.nodes} == {80e9}
    assert there.nodes[1].host_bytes == 64 * 2**30


def test_the_version_of_ray_is_the_pin() -> None:
    pins = Path(manifests.__file__).parents[1] / "pyproject.toml"
    assert f'"ray=={manifests.ray_version()}"' in pins.read_text()


def test_a_place_is_described_without_anything_heavy() -> None:
    code = "import sys, launch.places.kuberay; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "transformers", "deepspeed", "vllm"} & set(done.stdout.split())


# --- secrets ------------------------------------------------------------------------------------


def test_a_key_is_referred_to_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY[::-1])
    keys = {"WANDB_API_KEY": "wandb/api-key", "HF_TOKEN": "hf"}
    found = made(order("grpo/find", "tracking.wandb=online"), secrets=keys)
    written = manifests.text(found)
    assert KEY not in written
    assert KEY[::-1] not in written
    for where in (0, 1):
        env = {one["name"]: one for one in container(found[-1], where)["env"]}
        of = {"name": "wandb", "key": "api-key"}
        assert env["WANDB_API_KEY"]["valueFrom"] == {"secretKeyRef": of}
        of = {"name": "hf", "key": "HF_TOKEN"}
        assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": of}


@pytest.mark.parametrize(
    "site",
    [
        {"env": {"WANDB_API_KEY": KEY}},
        {"env": {"X": "hf_abcdefghijklmnopqrstuv"}},
        {"env": {"X": f"key={KEY}"}},  # of the environment here
        {"secrets": {"WANDB_API_KEY": "sk-Abcdefghijklmnop"}},
    ],
)
def test_a_key_in_a_site_file_is_refused_and_not_repeated(
    site: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(SITE | site))
    with pytest.raises(ValueError, match="Secret of the cluster") as caught:
        base.site("kuberay", path)
    value = next(iter(next(iter(site.values())).values()))
    assert value not in str(caught.value)
    assert "\n" not in str(caught.value)


# --- bad input ----------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"imagee": "x"}, "imagee: unknown field; did you mean 'image'"),
    ({"volume": {"claim": "Runs"}}, "volume.claim: 'Runs' is no name in Kubernetes"),
    ({"volume": {"claim": "runs", "mount": "runs"}}, "'runs' is no place to mount at"),
    ({"volume": {"claim": "runs", "mount": "/"}}, "'/' is no place to mount at"),
    ({"volume": {"claim": "runs", "size": "500GB"}}, "'500GB' is no amount in Kubernetes"),
    ({"workers": []}, "workers: .*at least 1 item"),
    ({"workers": [WORKERS | {"memory": "0Gi"}]}, "workers.0.memory: '0Gi' is no amount"),
    ({"workers": [WORKERS | {"gpus": "8"}]}, "workers.0.gpus: '8' is no node"),
    ({"workers": [WORKERS | {"gpus": "2x8x80GB"}]}, "those of one pod"),
    ({"workers": [WORKERS | {"shm": "64Gi"}]}, "shm=64Gi counts as memory"),
    ({"workers": [WORKERS | {"min": 2}]}, "replicas=1 is not from min=2 to max=1"),
    ({"workers": [WORKERS, WORKERS]}, "2 groups are named 'workers'"),
    ({"workers": [WORKERS | {"pod": {"volumes": []}}]}, "pod.volumes: .*`volume` and `data`"),
    ({"workers": [WORKERS | {"container": {"env": []}}]}, "container.env: .*`env` and `secrets`"),
    ({"data": {"/runs": "models"}}, "something else is mounted at /runs"),
    ({"env": {"X": "y"}, "secrets": {"X": "x"}}, "X stands in env and in secrets"),
    ({"env": {"X": 1}}, "env.X: .*valid string; got 1"),
    ({"queue": "team", "shutdown": False}, "shutdown=false"),
]


@pytest.mark.parametrize(("site", "message"), BAD)
def test_a_mistake_in_a_site_file_is_one_line(
    site: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(SITE | site))
    with pytest.raises(ValueError, match=message) as caught:
        base.site("kuberay", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["grpo/find", "Run", "7b", "x" * 48, "a-", "a.b", "\xe4", ""])
def test_a_name_that_kuberay_refuses_is_refused_with_one_that_it_takes(name: str) -> None:
    with pytest.raises(ValueError, match="KubeRay takes") as caught:
        made(order(name=name))
    kuberay_schema.check(made(order(name=str(caught.value).split()[-1])))


@pytest.mark.parametrize("output", ["runs", "/runs2", "~/runs", "/runs/../tmp", "/"])
def test_a_run_that_pods_would_lose_is_refused_with_the_fix(output: str) -> None:
    with pytest.raises(ValueError, match=r"say output=/runs$"):
        made(order("grpo/find", f"output={output}"))
    assert made(order("grpo/find", "output=/runs/./a"))


@pytest.mark.parametrize(
    ("site", "words", "message"),
    [
        ({}, ("tracking.wandb=online",), "tracking.wandb=online has no effect without a key"),
        ({"kind": "RayCluster", "retries": 1}, (), "retries has no effect"),
        ({"shutdown": False, "ttl": 9}, (), "ttl has no effect"),
        ({"volume": {"claim": "runs", "storage_class": "fast"}}, (), "storage_class has no effect"),
    ],
)
def test_what_has_no_effect_is_told(
    site: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        made(order("grpo/find", *words), **site)
