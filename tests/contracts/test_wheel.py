"""A wheel built from the tree runs the main job outside the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the installed wheel alone; dependencies come from the environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools keeps what an earlier build left there, files that are gone included.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    build = [sys.executable, "-P", "-m", "build", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    install = (sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    subprocess.run([*install, "--target", site, wheel], check=True)
    return site


def test_wheel_holds_the_models_and_stays_small(site):
    bundled = site / "headscope" / "probes" / "bundled"
    for name in ("story", "python"):
        assert (bundled / name / "model.safetensors").exists()
    assert len(list((bundled / "induction").glob("model.step*.safetensors"))) >= 8
    for folder in (bundled / "story", bundled / "python", bundled / "induction"):
        for name in ("config.json", "tokenizer.json", "card.json", "README.md"):
            assert (folder / name).exists()
        assert sum(file.stat().st_size for file in folder.iterdir()) < 13e6
        # How the models were made is not in the wheel.
        assert not list(folder.glob("*.py"))
    assert not list(site.rglob("headscope_training"))
    assert (site / "headscope" / "kernels" / "compiled" / "sweep.c").exists()
    for name in ("cells.js", "token_view.js", "component.css"):
        assert (site / "headscope" / "viz" / "component" / name).exists()
    assert not list(site.glob("kernels"))


def run(site: Path, folder: Path, program: str) -> str:
    """Run a program on the wheel; it says which files it ran."""
    # The wheel comes first on the path and the editable install's finder is not consulted.
    start = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", start + program], cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert str(site) in done.stdout
    return done.stdout


@pytest.mark.long
def test_demo_runs_from_the_wheel(site, tmp_path):
    program = (
        "import headscope.app.cli as cli; print(cli.__file__)\n"
        "sys.argv = ['headscope', 'demo', '--out', 'run']; cli.main()"
    )
    output = [line.rstrip() for line in run(site, tmp_path, program).splitlines()]
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    shown = tutorial.split("```text\n")[1].split("```")[0].splitlines()
    assert len(shown) > 10
    assert set(shown) <= set(output), "docs/tutorial.md shows what the demo prints"
    for name in ("report.html", "heads.parquet", "heads.csv", "report.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_the_model_of_real_text_loads_from_the_wheel(site, tmp_path):
    program = (
        "import headscope.probes as probes; print(probes.__file__)\n"
        "model = probes.load_model('headscope/bundled-python')\n"
        "print(len(model.to_str_tokens(model.encode('print(1)'))))"
    )
    assert int(run(site, tmp_path, program).split()[-1]) > 2
