"""One command over the study's commands."""

import importlib.util
import subprocess
import sys

import pytest

from mammo_utils.__main__ import COMMANDS, translate


def test_every_command_is_a_module_that_can_be_run():
    for module, _ in COMMANDS.values():
        assert importlib.util.find_spec(module), module


def test_a_study_and_its_settings_become_snakemakes_config():
    assert translate(["run"]) == ["-m", "snakemake"]
    words = translate(["run", "config/paper.yaml", "name=mine", "training.epochs=3", "-n", "--cores=2"])
    assert words == [
        "-m",
        "snakemake",
        "-n",
        "--cores=2",
        "--config",
        "study=config/paper.yaml",
        'settings=["name=mine", "training.epochs=3"]',
    ]
    assert translate(["status", "config/demo.yaml"]) == ["-m", "mammo_utils.workflow.status", "config/demo.yaml"]


def test_an_unknown_command_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no command 'runn'; accepted are run, status"):
        translate(["runn"])


def test_the_help_lists_the_commands_and_a_command_its_own():
    listed = subprocess.run([sys.executable, "-m", "mammo_utils"], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in listed for name in COMMANDS)
    words = [sys.executable, "-m", "mammo_utils", "draw", "--help"]
    assert "--difficulty" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
