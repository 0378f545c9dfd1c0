"""What reports say about the code and the machine that made them."""

import datetime
import importlib.metadata
import subprocess

import jax

import dlv3p_jax
from dlv3p_jax.runtime import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    process = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_versions_and_date():
    found = provenance.describe()
    assert found["version"] == dlv3p_jax.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == importlib.metadata.version("numpy")
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found["date"])
    assert datetime.timedelta() <= age < datetime.timedelta(minutes=1)


def test_a_revision_is_of_the_code_and_says_whether_it_was_changed(tmp_path):
    file = tmp_path / "package" / "code.py"
    file.parent.mkdir()
    file.write_text("1\n")
    assert provenance.git_revision(file) is None
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other").write_text("1\n")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "--quiet", "--message=other")
    assert provenance.git_revision(file) is None  # somebody else's repository, such as that around an environment
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "--quiet", "--message=code")
    revision = git(tmp_path, "rev-parse", "HEAD")[:12]
    git(tmp_path, "tag", "v1")
    assert provenance.git_revision(file) == revision
    file.write_text("2\n")
    assert provenance.git_revision(file) == f"{revision}-dirty"
