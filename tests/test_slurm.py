"""The batch script says what it is given, and Slurm's answers are told in a line."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.hardware import Node
from launch.places import base, slurm
from launch.places.base import Order
from launch.places.slurm import Config
from launch.sbatch import TEMPLATE, fill, script, seconds
from tests.slurm import JOB, Site, asked
from trainer.config import load

RECIPE = "grpo/find"
SITES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "gpus": {
        "account": "me",
        "partition": "gpu",
        "qos": "normal",
        "time": "2-00:00:00",
        "nodes": 2,
        "gpus_per_node": 8,
        "gpu_memory": "80GB",
        "cpus_per_node": 96,
        "memory": "900G",
        "constraint": "h100&ib",
        "exclusive": True,
        "interface": "ib0",
        "pass_env": ["WANDB_API_KEY", "HF_HOME"],
        "sbatch": ["--mail-type=END", "--comment='two words'"],
        "srun": ["--mpi=none"],
    },
    "pyxis": {"container": {"image": "org/image#with:tag", "mounts": ["/data dir:/data"]}},
    "apptainer": {"container_command": ["apptainer", "exec", "--nv", "/a b/laconic.sif"]},
    "modules": {
        "modules": ["cuda/12.8", "gcc"],
        "setup": "source ~/venv/bin/activate\nulimit -c 0",
    },
    "firewall": {"ports": "30000-30500", "worker_ports": "31000-32000", "temp": "/scratch"},
    "open": {"token": False, "dashboard": True, "requeue": False, "signal": "USR1", "grace": 600},
    "words": {"env_vars": {"A": 'it\'s $HOME "`x`"\nnew\\line', "B": "@train@ @nobody@"}},
}


def order(folder: Path, *more: str, dry_run: bool = False) -> Order:
    words = (f"output={folder}/runs", *more)
    return Order(RECIPE, words, load(RECIPE, words[:1]), "find", dry_run, place="slurm")


def text(folder: Path, **fields: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return script(order(folder), Config(**fields))


@pytest.mark.parametrize("site", SITES)
def test_every_script_is_one(site: str, tmp_path: Path) -> None:
    path = tmp_path / "job.sbatch"
    path.write_text(text(tmp_path, **SITES[site]))
    subprocess.run(["bash", "-n", path], check=True)
    # It cannot follow what setup sources, and wonders about a $ that is meant.
    checked = subprocess.run(
        [
            Path(sys.executable).with_name("shellcheck"),
            "--shell=bash",
            "--exclude=SC1090,SC1091,SC2016",
            path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout + checked.stderr == ""


def test_options_are_what_the_site_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / 'it\'s a 100% "place"#here'
    here.mkdir()
    monkeypatch.chdir(here)
    path = tmp_path / "job.sbatch"
    path.write_text(text(here, **SITES["gpus"]))
    found = asked(path)
    assert found["chdir"] == str(here)
    assert found["output"] == f"{here}/runs/.launch/find-%j.log".replace("100%", "100%%")
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"]) == ("2", "1", "8")
    assert (found["cpus-per-task"], found["mem"], found["time"]) == ("96", "900G", "2-00:00:00")
    assert found["constraint"] == "h100&ib"
    assert found["comment"] == "two words"
    assert {"requeue", "exclusive", "no-kill"} <= set(found)
    assert found["export"].endswith(",WANDB_API_KEY,HF_HOME")
    warned = load(RECIPE).checkpoint.grace + 60  # 10 to close, 50 for Ray to end
    assert found["signal"] == f"B:TERM@{warned:.0f}"


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
ODD = st.sampled_from(["", "'", '"', "$HOME", "`id`", "$(id)", "\\", "a\nb", "@run@", "* ?", "-n"])


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An srun that runs what it is told, and a laconic that says what that was."""
    site = Site(tmp_path_factory.mktemp("words"), "alpha", "sbatch")
    site.put("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    site.put("laconic", 'printf "%s\\0" "${A-}" "$@"')
    return site


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=st.lists(WORDS | ODD, max_size=4), value=WORDS | ODD, option=WORDS | ODD)
def test_words_arrive_as_they_were_given(
    shell: Site, words: list[str], value: str, option: str
) -> None:
    one = order(shell.folder, *words)
    config = Config(env_vars={"A": value}, srun=("--x=" + option,))
    head, _, _ = script(one, config).partition("# ---- The job")
    ask = 'on alpha "${train[@]}" "a:1" & wait\non alpha "${resume[@]}" "a:1" & wait\n'
    run = subprocess.run(
        ["bash", "-c", head + ask],
        env=shell.env,
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    said = run.stdout.decode().split("\0")
    train = [value, "train", RECIPE, *one.settings, "--address", "a:1"]
    resume = [value, "resume", str(one.resolved.folder), "--address", "a:1"]
    assert said == [*train, *resume, ""]


def test_a_template_of_the_sites_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.sbatch"
    mine.write_text(TEMPLATE.read_text().replace("#!/bin/bash\n", "#!/bin/bash\n# ours\n", 1))
    assert "# ours" in text(tmp_path, template=mine)
    for broken, why in (
        (mine.read_text() + "@mine@", "has @mine@, which nothing fills in; known: @sbatch@"),
        (mine.read_text().replace("@setup@", ""), "lacks @setup@, which would have no effect"),
    ):
        mine.write_text(broken)
        with pytest.raises(ValueError, match=why):
            text(tmp_path, template=mine, setup="true")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        text(tmp_path, template=tmp_path / "none")


def test_what_is_filled_in_is_not_filled_again() -> None:
    assert fill("@a@ user@b.org @b@", {"a": "@b@", "b": "2"}, "t") == "@b@ user@b.org 2"


@pytest.mark.parametrize(
    ("site", "why"),
    [
        ("partitions: gpu", "partitions: unknown field; did you mean 'partition'?"),
        ("time: 12:00:00", "time: in quotes, as '12:00:00': without, YAML reads the number 43200"),
        ("time: soon", "time: 'soon' is no time limit; write e.g. '12:00:00'"),
        ("gpus_per_node: 8", "gpus_per_node without gpu_memory"),
        ("{gpus_per_node: 8, gpu_memory: lots}", "'lots' is no size"),
        ("env_vars: {WANDB_API_KEY: x}", "WANDB_API_KEY holds a secret, .* write pass_env: "),
        ("env_vars: {A B: x}", "'A B' is no name of a variable"),
        ("pass_env: ['A,B']", "pass_env.0: String should match"),
        ("ports: 30000-30005", "is not 10 or more ports"),
        ("ports: 70000-80000", "is not 10 or more ports"),
        ("sbatch: [mail]", "'mail' is no option of sbatch; write --mail=..."),
        ('sbatch: ["--a\\n#SBATCH --b"]', "sbatch.0: String should match"),
        ("partition: 'a b'", "partition: String should match"),
        ("memory: 5 GB", "memory: String should match"),
        ("temp: /a/path/that/is/far/too/long/for/a/socket", "temp: String should have at most 20"),
        ("{container: {image: a}, container_command: [b]}", "say one of them"),
        ("nodes: 0", "nodes: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_of_a_site_file_are_a_line_each(site: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(site)
    with pytest.raises(ValueError, match=why) as told:
        base.site("slurm", file)
    assert "\n" not in str(told.value)


def test_a_grace_shorter_than_the_recipes_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="a run that needs them is killed in its checkpoint"):
        script(order(tmp_path), Config(grace=5))


@pytest.mark.parametrize(
    ("time", "is_"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("2-0", 172800),
        ("2-12:30", 217800),
        ("1-00:00:01", 86401),
        ("UNLIMITED", math.inf),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, is_: float) -> None:
    assert seconds(time) == is_


def test_a_limit_that_leaves_no_time_for_a_warning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'1:30' is over before the run could be warned 90 s"):
        script(order(tmp_path), Config(time="1:30"))
    assert "B:TERM@89" in text(tmp_path, time="1:30", grace=89)


def test_a_container_without_the_folder_warns(tmp_path: Path) -> None:
    here = os.getcwd()
    for mounts in ((), (f"{here}:/other",), ("/elsewhere",)):
        image = {"image": "a", "mounts": mounts}
        with pytest.warns(UserWarning, match=f"add {here}:{here}"):
            script(order(tmp_path), Config(container=image))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mounts = (f"{Path(here).parent}:{Path(here).parent}:rw",)
        script(order(tmp_path), Config(container={"image": "a", "mounts": mounts}))


def test_the_plan_knows_what_there_is() -> None:
    config = Config(**SITES["gpus"], gpu="H100")
    node = Node(8, "H100", 96, gpu_bytes=80e9, host_bytes=900 * 2**30)
    assert slurm.hardware(config).cluster.nodes == (node, node)
    assert slurm.hardware(Config(memory="1024")).cluster.nodes[0].host_bytes == 2**30
    assert slurm.hardware(Config(memory="0")).cluster.nodes[0].host_bytes is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Slurm's commands on this machine."""
    site = Site(tmp_path / "slurm")
    for name in ("PATH", "STUB", "STUB_NODES"):
        monkeypatch.setenv(name, site.env[name])
    return site


def says(site: Site, command: str, answer: str, code: int = 0) -> None:
    (site.folder / f"{command}.out").write_text(f"{code}\n{answer}")


def test_a_job_is_written_submitted_and_told(
    here: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(here, "sbatch", f"{JOB};cluster\n")
    assert slurm.launch(order(tmp_path), Config()) == 0
    path = tmp_path / "runs" / ".launch" / "find.sbatch"
    assert here.told("sbatch") == [["--parsable", str(path)]]
    said = capsys.readouterr().out
    assert f"job {JOB} is find; script {path}" in said
    assert f"find-{JOB}*.log beside it" in said
    assert "laconic stop find --on slurm" in said
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".launch"], "the run makes its own"


def test_a_dry_run_submits_nothing(
    here: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm.launch(order(tmp_path, dry_run=True), Config()) == 0
    assert not (here.folder / "told").exists()
    path = tmp_path / "runs" / ".launch" / "find.sbatch"
    assert path.is_file()
    assert shlex.join(["sbatch", str(path)]) in capsys.readouterr().out


def told(run: Any, *args: Any) -> str:
    with pytest.raises(ValueError) as error:
        run(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_hinders_a_submission_is_told(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, submit = order(tmp_path), slurm.launch
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "WANDB_API_KEY is not set here" in told(submit, one, Config(pass_env=("WANDB_API_KEY",)))
    assert "mend setup, or the template" in told(submit, one, Config(setup="if true; then"))
    says(here, "squeue", "4700\n")
    assert "a job named find is queued or runs already (4700)" in told(submit, one, Config())
    says(here, "squeue", "")
    says(here, "sbatch", "sbatch: error: invalid account\nsbatch: error: no\n", 1)
    assert "was refused: sbatch: error: invalid account sbatch:" in told(submit, one, Config())
    monkeypatch.setenv("PATH", os.defpath)
    written = told(submit, one, Config())
    assert "the script is written" in written
    assert f"sbatch {tmp_path}/runs/.launch/find.sbatch" in written
    (tmp_path / "file").touch()
    assert "cannot be written" in told(submit, order(tmp_path / "file"), Config())


def test_a_job_that_runs_is_described_and_stopped(
    here: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a log.log"
    log.write_text("step 1\n")
    says(here, "squeue", f"{JOB}|find|RUNNING|1:02:03|12:00:00|2|node[1-2]\n")
    says(here, "scancel", "")
    says(here, "scontrol", f"JobId={JOB} StdErr={log} StdOut={log} Power=\n")
    assert slurm.status(JOB, Config()) == 0
    assert slurm.logs(JOB, Config(), False) == 0
    assert slurm.stop(JOB, Config()) == 0
    said = capfd.readouterr().out
    assert f"find ({JOB}): running, 1:02:03 of 12:00:00 on 2 nodes node[1-2]" in said
    assert "step 1\n" in said
    assert here.told("scancel") == [["--batch", "--signal=INT", JOB]]


def test_a_job_that_waits_is_cancelled(here: Site) -> None:
    says(here, "scancel", "")
    says(here, "squeue", f"{JOB}|find|PENDING|0:00|12:00:00|2|(Priority)\n")
    slurm.stop(JOB, Config())
    assert here.told("scancel") == [[JOB]]


def test_a_job_that_is_over_is_described(
    here: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    says(here, "squeue", "slurm_load_jobs error: Invalid job id specified\n", 1)
    says(here, "sacct", "find|COMPLETED|01:00:00|2|0:0\n")
    assert slurm.status(JOB, Config()) == 0
    assert f"find ({JOB}): completed after 01:00:00 on 2 nodes, exit" in capfd.readouterr().out
    assert "has ended already" in told(slurm.stop, JOB, Config())
    script, log = tmp_path / "my runs" / "find.sbatch", tmp_path / "my runs" / f"find-{JOB}.log"
    says(here, "sacct", shlex.join(["sbatch", "--parsable", str(script)]) + "\n")
    assert "if job 4711 has not begun, it will be" in told(slurm.logs, JOB, Config(), False)
    log.parent.mkdir()
    log.write_text("done\n")
    slurm.logs(JOB, Config(), False)
    assert capfd.readouterr().out == "done\n"
    says(here, "sacct", "")
    assert "Slurm knows no job 4711" in told(slurm.status, JOB, Config())


def test_a_job_is_known_by_its_name(here: Site, capsys: pytest.CaptureFixture[str]) -> None:
    says(here, "squeue", "")
    says(here, "sacct", "")
    assert "no job of yours in the last 30 days is named find" in told(slurm.stop, "find", Config())
    says(here, "sacct", "4000\n4711\n")
    assert "find has ended already" in told(slurm.stop, "find", Config())
    assert ["--noheader", "--jobs=4711", "--format=%i|%j|%T|%M|%l|%D|%R"] in here.told("squeue")


def test_every_field_is_told() -> None:
    fields = Config.model_fields
    plain = {"account", "partition", "qos", "nodes", "gpus_per_node", "container"}
    assert [name for name, field in fields.items() if not field.description] == sorted(
        plain, key=list(fields).index
    )
