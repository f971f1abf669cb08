"""The image without Docker: the instructions of the Dockerfile are carried out in a scratch root on this machine.

The root of this machine stands in for Debian. Over it lies what ``python:3.11-slim`` has: a Python in /usr/local that sees
the packages of this environment, except phi3-serve. Each stage writes into a directory of its own (overlayfs), which
begins as a copy of that of its base. So ``pip install`` finds all dependencies, and really installs phi3-serve.

Two things differ. ``apt-get`` installs nothing and notes the packages; this machine must have those that are used. The
compiled kernels of this checkout are put where the compiler would put them: compiling takes minutes.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.image.context import context_files
from tests.image.dockerfile import Instruction, Stage, stages_of

ROOT = Path(__file__).parents[2]
PYTHON_IMAGE = "python:3.11-slim"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KERNELS = Path("phi3_serve/engine/kernels")
APT_LOG = "var/log/apt-packages"
UID = FIRST_ID_OF_PEOPLE = 1000
NOBODY = 65534


@dataclass
class Image:
    """A built stage: its layers, from the lowest, and what its process gets."""

    layer: Path  # what differs from the root of this machine
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    directory: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: str = ""

    def found(self, path: str) -> Path:
        """The file or directory at an absolute path of the image."""
        return self.layer / path.removeprefix("/")


class Builder:
    """Builds stages of a Dockerfile into ``scratch``, a directory."""

    def __init__(self, scratch: Path, dockerfile: Path = ROOT / "Dockerfile", context: Path = ROOT) -> None:
        self._scratch = scratch
        self._stages = stages_of(dockerfile)
        self._context = context
        self._files = list(context_files(context))
        self._built: dict[str, Image] = {}
        self._python = _python_layer(scratch / "python")

    def build(self, name: str) -> Image:
        """The image of a stage; other stages are built when it needs them."""
        if name not in self._built:
            stage = self._stages[name]
            base = Image(self._python) if stage.base == PYTHON_IMAGE else self.build(stage.base)
            layer = self._scratch / name
            subprocess.run(["cp", "--archive", base.layer, layer], check=True)
            image = replace(base, layer=layer, environment=dict(base.environment))
            self._carry_out(stage, image)
            self._built[name] = image
        return self._built[name]

    def _carry_out(self, stage: Stage, image: Image) -> None:
        for instruction in stage.instructions:
            match instruction.name:
                case "COPY":
                    self._copy(instruction, image)
                case "RUN":
                    inside(image, ["/bin/sh", "-ec", instruction.text], timeout_s=300)
                case "ENV":
                    image.environment |= dict(word.split("=", 1) for word in instruction.words)
                case "WORKDIR":
                    image.directory = instruction.text
                    (image.layer / image.directory.removeprefix("/")).mkdir(parents=True, exist_ok=True)
                case "USER":
                    image.user = instruction.text
                case "ENTRYPOINT":
                    image.entrypoint = instruction.words
                case "CMD":
                    image.command = instruction.words
                case "HEALTHCHECK":
                    image.health = instruction.text.partition("CMD ")[2]
                case _:  # ARG and EXPOSE change nothing here
                    pass

    def _copy(self, instruction: Instruction, image: Image) -> None:
        """A target with a slash at its end is a directory; so is that of several sources."""
        words = instruction.words
        source_stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
        *sources, target = words
        where = image.layer / os.path.join(image.directory, target).removeprefix("/")
        for source in sources:
            if source_stage is not None:
                found = self.build(source_stage).found(source.rstrip("/"))
                files = [str(p.relative_to(found)) for p in found.rglob("*") if p.is_file()] if found.is_dir() else [""]
            else:
                found = self._context / source.rstrip("/")
                wanted = source.rstrip("/")
                files = [p.removeprefix(f"{wanted}/") for p in self._files if p.startswith(f"{wanted}/")]
                files = files or [""]
                assert found.is_dir() or wanted in self._files, f"{source} is not in the build context"
            for file in files:
                to = where / (file or found.name) if file or target.endswith("/") else where
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found / file if file else found, to)
        if source_stage is None:
            _put_compiled_kernels(image.layer / image.directory.removeprefix("/"))


def _put_compiled_kernels(source: Path) -> None:
    """The kernels of this checkout as results of a compiler in ``source``, so that setuptools does not compile again."""
    ours = sorted((ROOT / KERNELS).glob("*.so"))
    if not (source / KERNELS / "csrc" / "cpu.cpp").exists():
        return
    assert ours, "the kernels of this checkout are not compiled"
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    made = source / "build" / f"lib.{sysconfig.get_platform()}-cpython-{version}" / KERNELS
    made.mkdir(parents=True, exist_ok=True)
    for path in ours:
        shutil.copy(path, made)  # with the time of now, later than any source


def _python_layer(layer: Path) -> Path:
    """What ``python:3.11-slim`` adds to Debian."""
    site_packages = (
        layer / "usr/local/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", layer / "usr/local"], check=True)
    packages = layer / "opt/packages"
    packages.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"phi3_serve|__editable__|_virtualenv|distutils-precedence|.*\.pth$", path.name):
            (packages / path.name).symlink_to(path.resolve())
    (site_packages / "packages.pth").write_text("/opt/packages\n")
    scripts = layer / "usr/local/bin"
    _write_script(scripts / "pip", 'exec /usr/local/bin/python -m pip --disable-pip-version-check "$@"')
    _write_script(scripts / "ray", 'exec /usr/local/bin/python -m ray.scripts.scripts "$@"')
    _write_script(scripts / "serve", 'exec /usr/local/bin/python -m ray.serve.scripts "$@"')
    apt = f'for word; do case $word in -*|install|update) ;; *) echo "$word" >> /{APT_LOG};; esac; done'
    _write_script(layer / "usr/local/sbin/apt-get", apt)
    (layer / APT_LOG).parent.mkdir(parents=True)
    _forget_people(layer / "etc")
    (layer / "root").mkdir()  # Python itself may be in this directory, which only root may enter otherwise
    for directory in (layer, layer / "root"):
        directory.chmod(0o755)
    return layer


def _forget_people(etc: Path) -> None:
    """Debian's image has no users and groups of people, whose numbers begin at 1000."""
    etc.mkdir()
    for file in ("passwd", "group"):
        lines = Path("/etc", file).read_text().splitlines()
        kept = [line for line in lines if not FIRST_ID_OF_PEOPLE <= int(line.split(":")[2]) < NOBODY]
        (etc / file).write_text("\n".join(kept) + "\n")


def _write_script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def start(image: Image, command: list[str], *, network: str | None = None) -> "subprocess.Popen[str]":
    """Start ``command`` as a container of the image would: its root, environment, directory and user.

    ``network`` is the name of a network namespace; without it the command has the network of this machine.
    """
    root = image.layer.with_name(f"{image.layer.name}-root")
    work = image.layer.with_name(f"{image.layer.name}-work")
    for directory in (root, work):
        directory.mkdir(exist_ok=True)
    settings = [f"{name}={value}" for name, value in image.environment.items()]
    user = [] if image.user == "root" else [f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]
    home = "/root" if image.user == "root" else f"/home/{image.user}"
    of_test = ["PIP_NO_BUILD_ISOLATION=0", "PIP_NO_INDEX=1", f"HOME={home}"]
    script = f"""
mount -t overlay overlay -o lowerdir=/,upperdir={image.layer},workdir={work} {root}
mount --rbind /dev {root}/dev && mount -t tmpfs tmpfs {root}/dev/shm
mkdir -p {root}/tmp/ray && mount -t tmpfs -o mode=1777 tmpfs {root}/tmp/ray # not that of this machine
mount -t proc proc {root}/proc
cd {root} && exec chroot {root} setpriv {" ".join(user) or "--no-new-privs"} env -i "$@"
"""
    in_directory = ["/bin/sh", "-c", f'cd {image.directory} && exec "$@"', "sh"]
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-ec", script, "sh"]
    if network is not None:
        line = ["ip", "netns", "exec", network, *line]
    return subprocess.Popen(
        [*line, *settings, *of_test, *in_directory, *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def inside(image: Image, command: list[str], *, timeout_s: float = 60) -> str:
    """Run ``command`` to its end; its output."""
    process = start(image, command)
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, f"{command} ended with {process.returncode}:\n{output[-3000:]}"
    return output


def packages_of_apt(image: Image) -> set[str]:
    """What the stages of the image have installed from Debian."""
    return set(image.found(APT_LOG).read_text().split())
