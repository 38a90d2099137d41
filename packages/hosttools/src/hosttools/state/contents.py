"""Files: content, owner, mode and kind; the release's and Debian's packages."""

import contextlib
import fcntl
import glob
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosttools import files, process
from hosttools.findings import FILES, LATER, NETWORK, REDIS
from hosttools.state.values import ENTRIES, State, digest

# Of linux/fs.h.
GET_FLAGS, SET_FLAGS, FLAGS = 0x80086601, 0x40086602, {"immutable": 0x10, "append-only": 0x20}
ACCESS_LIST = "system.posix_acl_access"
# Files whose content is ours or decides what our programs do, by the layer of what they can explain.
CONTENT = {
    NETWORK: "/etc/nftables*.conf /etc/systemd/system/platform-firewall.service* /etc/hosts /etc/resolv.conf"
    " /etc/nsswitch.conf /etc/gai.conf /etc/host.conf /etc/hostname",
    REDIS: "/etc/redis/redis*.conf /etc/redis/*tls/* /etc/systemd/system/redis-se*",
    FILES: "/etc/{app}/** /etc/{app}-flower/** /etc/systemd/system/{app}-* /etc/supervisor/** /etc/ld.so.preload"
    " /etc/environment /etc/passwd /etc/group /etc/security/** /etc/pam.d/** /etc/ssl/openssl.cnf",
    LATER: "/etc/systemd/*.conf.d/* /etc/systemd/*.conf /etc/logrotate.d/* /etc/ssh/** /etc/sysctl.d/* /etc/sysctl.conf"
    " /etc/modprobe.d/* /etc/tmpfiles.d/* /etc/apt/apt.conf.d/* /etc/profile.d/* /etc/sudoers /etc/sudoers.d/*"
    " /etc/cron*/** /etc/prometheus/** /etc/prometheus-*/** /etc/default/prometheus* /etc/systemd/system/*.d/*"
    " /etc/systemd/system/certificate-end.* /etc/haproxy/** /etc/keepalived/**",
}
# The application's live release, and the platform's tools: each with a virtual environment of its own.
PLACES = ("backend", "platform")
RELEASE = "/opt/{app}/backend/.* /opt/{app}/backend/app/**" + "".join(
    f" /opt/{{app}}/{place} /opt/{{app}}/{place}/venv/bin/* /opt/{{app}}/{place}/venv/pyvenv.cfg"
    f" /opt/{{app}}/{place}/venv/lib/python3*/site-packages/*.pth"
    f" /opt/{{app}}/{place}/venv/lib/python3*/site-packages/*custom*.py"
    for place in PLACES
)
RELEASE_RIGHTS = " ".join(f"/opt/{{app}}/{place}/ /opt/{{app}}/{place}/**/" for place in PLACES)
LARGEST_TEXT = 32 * 1024  # bytes of a file whose text is recorded
# Of these owner and mode count, and their number does not grow.
RIGHTS_OF = (
    "/ /dev /dev/shm /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx /tmp /var/tmp /run"
    " /run/lock /run/redis* /run/sentinel* /run/systemd/journal/* /var /var/lib /var/log /var/log/journal /etc"
    " /opt /usr /usr/bin /usr/lib /etc/{app} /etc/redis /opt/{app} /opt/{app}/releases"
    " /var/log/{app} /var/log/redis /var/lib/redis /var/lib/redis/**/"
    " /var/lib/prometheus /usr/bin/python3* /usr/bin/redis-* /usr/bin/sudo /bin/sh /usr/bin/env"
    " /usr/bin/prometheus* /usr/sbin/nft /usr/sbin/haproxy /usr/bin/systemctl /usr/bin/supervisor*"
)
# Of a directory whose files come and go, the owners and modes that they have.
RIGHTS_IN = "/var/lib/redis/**/ /var/log/redis/ /var/log/{app}/"


def expand(patterns: str, app: str) -> Iterator[str]:
    """Return the names that match, each once."""
    for pattern in patterns.format(app=app).split():
        yield from sorted(glob.glob(pattern, recursive=True))[:ENTRIES]  # noqa: PTH207 - the patterns are absolute


def rights(name: str) -> str:
    """Return owner, group and mode of a file."""
    seen = os.lstat(name)
    try:
        owner = f"{pwd.getpwuid(seen.st_uid).pw_name}:{grp.getgrgid(seen.st_gid).gr_name}"
    except KeyError:
        owner = f"{seen.st_uid}:{seen.st_gid}"
    return f"{owner} {stat.S_IMODE(seen.st_mode):04o}"


def all_files(app: str, _: Any) -> State:
    """Return kind, content, owner and mode of files."""
    found = _files(" ".join(CONTENT.values()), RIGHTS_OF, app)
    for name in expand(RIGHTS_IN, app):
        owners = {_owner(entry.path) for entry in os.scandir(name) if entry.is_file(follow_symlinks=False)}
        found[f"{name}*"] = ", ".join(sorted(filter(None, owners)))
    return found


def attributes(app: str, _: Any) -> State:
    """Return what else than owner and mode decides about files: flags and access lists."""
    found: State = {}
    places = f"{' '.join(CONTENT.values())} {RIGHTS_OF} /var/lib/redis/** /var/log/redis/*"
    for name in dict.fromkeys(expand(places, app)):
        with contextlib.suppress(OSError):  # none, or a file system that has none, or it has just gone
            found[f"the access list of {name}"] = digest(os.getxattr(name, ACCESS_LIST, follow_symlinks=False))
        with contextlib.suppress(OSError):
            flags = change_flags(name) if _kind(name) in ("file", "directory") else 0
            found |= {f"the attribute {word} of {name}": "there" for word, bit in FLAGS.items() if flags & bit}
    return found


def change_flags(name: str, without: int = 0) -> int:
    """Return a file's flags; take some away."""
    opened = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        flags = int.from_bytes(fcntl.ioctl(opened, GET_FLAGS, bytes(8)), "little")
        if without:
            fcntl.ioctl(opened, SET_FLAGS, (flags & ~without).to_bytes(8, "little"))
        return flags
    finally:
        os.close(opened)


def release(app: str, _: Any) -> State:
    """Return which release and which tools of the platform are live, and their files."""
    return _files(RELEASE, RELEASE_RIGHTS, app)


def texts(recorded: State) -> State:
    """Return the text of each small file that everybody may read, and that is as it is recorded."""
    found: State = {}
    for name, value in recorded.items():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            seen = os.lstat(name)
            if value.split()[2:3] == ["file"] and seen.st_mode & stat.S_IROTH and seen.st_size <= LARGEST_TEXT:
                text = Path(name).read_bytes().decode()
                found |= {name: text} if digest(text) == value.split()[-1] else {}
    return found


def _files(content: str, rights_of: str, app: str) -> State:
    found: State = {}
    for name in expand(content, app):
        # The former is a runbook's, for a while.
        if not name.endswith(("~debug-mode.conf", ".pyc", "/__pycache__")) and name not in found:
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                found[name] = _file(name)
    for name in expand(rights_of, app):
        if "/__pycache__" not in name:
            with contextlib.suppress(FileNotFoundError):
                found.setdefault(name, f"{rights(name)} {_kind(name)}")
    return found


def _owner(name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        owner, mode = rights(name).split()
        return f"{owner} {'readable and writable' if int(mode, 8) & 0o600 == 0o600 else mode}"
    return ""


def _kind(name: str) -> str:
    mode = os.lstat(name).st_mode
    names = {stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFREG: "file", stat.S_IFSOCK: "socket"}
    device = f" {os.major(os.lstat(name).st_rdev)}:{os.minor(os.lstat(name).st_rdev)}"
    return names.get(stat.S_IFMT(mode), f"device{device}")


def _file(name: str) -> str:
    kind = _kind(name)
    if kind == "link":
        return f"leads to {os.readlink(name)}"  # noqa: PTH115 - the text of the link
    # A secret's digest is safe: secrets are long and random, and only root reads this record.
    content = f" {digest(Path(name).read_bytes())}" if kind == "file" and os.stat(name).st_size < 1 << 24 else ""  # noqa: PTH116
    return f"{rights(name)} {kind}{content}"


def packages(app: str, _: Any) -> State:
    """Return the versions in both virtual environments, and their lists of files; tools are platform/NAME."""
    found = {}
    for where in PLACES:
        for place in Path(f"/opt/{app}/{where}/").glob("venv/lib/python3*/site-packages/*.dist-info"):
            name, _, version = place.name.removesuffix(".dist-info").rpartition("-")
            found[f"{where}/{name}".removeprefix("backend/")] = (
                f"{version} ({digest(files.read(place / 'RECORD').strip())})"
            )
    return found


# Where programs of Debian's packages and what they load lie; the interpreter writes its own caches there.
INFO = Path("/var/lib/dpkg/info")
PROGRAMS = re.compile(r"/(?:(?:usr/)?(?:s?bin|lib\w*)|etc/python3[^/]*)/(?!.*(?:/__pycache__|\.pyc$))")


def debian_files(_: str, __: Any) -> State:
    """Return the files of Debian's packages that are gone, or newer than their package: what dpkg writes is older."""
    found: State = {}
    for listing in sorted(INFO.glob("*.list")):
        installed = listing.stat().st_mtime
        for name in filter(PROGRAMS.match, files.read(listing).splitlines()):
            seen = files.lstat(Path(name))
            if seen is None or (stat.S_ISREG(seen.st_mode) and seen.st_mtime > installed + 1):
                what = "gone" if seen is None else "changed by hand"
                package = listing.stem.partition(":")[0]
                # A reinstallation leaves what is under /etc.
                remedy = f"of {package}" if name.startswith("/etc/") else f"apt-get install --reinstall {package}"
                found.setdefault(name, f"{what}: {remedy}")
    return found


def system_packages(_: str, __: Any) -> State:
    """Return the versions of Debian's packages that are installed."""
    told = process.output("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Package}|${Version}\n")
    return {
        package: version
        for state, package, version in (line.split("|") for line in told.splitlines())
        if state[1] == "i"
    }
