"""Where the dashboard is served, and the warning that goes with any other address."""

import subprocess
from types import SimpleNamespace

import pytest
import streamlit as st

from headscope.app.dashboard.launch import command, is_local
from headscope.app.pipeline import capture_run


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_an_address_that_others_reach_is_warned_of(
    address, local, demo_run, headscope, monkeypatch, dashboard
):
    started = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda line, check: started.append(line) or done)
    ended = headscope("app", demo_run, "--address", address)
    assert f"--server.address={address}" in started[0]
    assert bool(ended.err) is not local
    assert local or "without a password" in ended.err[0]
    monkeypatch.setattr(st, "get_option", lambda name: {"server.address": address}.get(name))
    warnings = [warning.value for warning in dashboard(demo_run, "runs").warning]
    assert bool([text for text in warnings if "without a password" in text]) is not local


def test_the_default_is_this_machine_and_uploads_are_limited(demo_run):
    line = command(demo_run)
    assert "--server.address=127.0.0.1" in line
    assert "--server.maxUploadSize=20" in line
    assert is_local("127.0.0.1")


def test_a_folder_of_runs_is_served_and_one_without_refused(tmp_path, headscope, monkeypatch):
    started = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda line, check: started.append(line) or done)
    assert "capture one first" in headscope("app", tmp_path).refusal()
    capture_run(tmp_path / "one", "headscope/bundled", task="story", number=1)
    assert headscope("app", tmp_path).code == 0
    assert started[0][-1] == str(tmp_path)
