"""Beginning of a command line whose rest runs as a process of another host does: its user, its place, its rights."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.core.process.process_identity import UNIT_PROPERTIES, DroppedPrivileges, ProcessIdentity

_NOTHING = DroppedPrivileges()

# Gives itself what the words before `--` say, and becomes the command after it. All programs are of util-linux, which
# every Debian has. What it may not do it leaves as it is: what came of it is read afterwards. Only whose it is must be
# right: root that cannot become somebody else does not go on.
_BECOME = r"""
user= group= groups= words= owner= limits= policy= me=$(id -u)
while [ $# -gt 0 ]; do
  value=${1#*=}
  case $1 in
    --) shift; break ;;
    directory=*) cd -- "$value" 2>/dev/null || cd / ;;
    umask=*) umask "$value" ;;
    oom=*) echo "$value" >/proc/$$/oom_score_adj ;;
    limit=*) limits="$limits --$value" ;;
    cpus=) taskset -pc "$(cat /sys/devices/system/cpu/online)" $$ ;;
    cpus=*) taskset -pc "$value" $$ ;;
    nice=*) renice "$value" -p $$ ;;
    policy=*) policy=$value ;;
    io=*) ionice -c "${value% *}" -n "${value#* }" -p $$ ;;
    owner=*) owner=$value ;;
    own=*) [ -z "$owner" ] || [ "$me" != 0 ] || chown -h -- "$owner" "$value" ;;
    user=*) user=$value ;;
    group=*) group=$value ;;
    groups=*) groups=$value ;;
    account=*) user=$(id -u -- "$value") && group=$(id -g -- "$value") && groups=$(id -G -- "$value" | tr ' ' ,) ;;
    setpriv=*) words="$words $value" ;;
  esac >/dev/null 2>&1
  shift
done
# One that it may not set keeps prlimit from the ones after it.
[ -z "$limits" ] || prlimit --pid $$ $limits 2>/dev/null || for limit in $limits; do
  prlimit --pid $$ "$limit"
done >/dev/null 2>&1
if [ "$me" = 0 ] && [ -n "$user" ]; then
  if [ -n "$groups" ]; then words="$words --groups=$groups"; else words="$words --clear-groups"; fi
  words="$words --reuid=$user --regid=$group"
fi
# Where there is no setpriv, root stays root all the same.
[ "$user" != "$me" ] || command -v setpriv >/dev/null || words=
[ -z "$words" ] || set -- setpriv $words "$@"
# Last: what is idle waits for everybody else.
[ -z "$policy" ] || chrt --pid "--${policy% *}" "${policy#* }" $$ >/dev/null 2>&1
exec "$@"
"""


def run_as(
    like: ProcessIdentity,
    *,
    as_user: str = "",
    drops: DroppedPrivileges = _NOTHING,
    run_directory: str = "",
) -> list[str]:
    """Return the beginning of a command line whose rest is run like that process. Pure.

    :param as_user: be that user instead, named as `-runas` names them.
    :param drops: what the rest gives up by itself: it is started with more.
    :param run_directory: made to belong to whoever the rest will be.
    """
    words = list(_settings(like))
    if run_directory:
        owner = f"{like.user}:{like.group}"
        if drops.user:
            owner = drops.user if ":" in drops.user else f"{drops.user}:"
        words += [f"owner={owner}", f"own={run_directory}"]
    user, colon, group = as_user.partition(":")
    if colon:
        words += [f"user={user}", f"group={group}", f"groups={group}"]
    elif user:
        words.append(f"account={user}")
    elif not drops.user:
        groups = ",".join(map(str, sorted(like.groups)))
        words += [f"user={like.user}", f"group={like.group}", f"groups={groups}", *_privileges(like)]
    return ["sh", "-c", _BECOME, "sh", *words, "--"]


def _settings(like: ProcessIdentity) -> Iterator[str]:
    if like.directory:
        yield f"directory={like.directory}"
    if like.umask is not None:
        yield f"umask={like.umask:04o}"
    for name, (soft, hard) in like.limits.items():
        yield f"limit={name}={soft}:{hard}"
    yield f"cpus={like.cpus}"
    yield f"nice={like.nice}"
    if like.policy in ("other", "fifo", "rr", "batch", "idle"):
        yield f"policy={like.policy} {like.priority}"
    if like.io:
        kind, _, level = like.io.partition(" ")
        yield f"io={({'realtime': 1, 'best-effort': 2, 'idle': 3}).get(kind, 2)} {level or 0}"
    yield f"oom={like.oom_adjustment}"


def _privileges(like: ProcessIdentity) -> Iterator[str]:
    """Yield the words of setpriv; what users other than root have beside is given to them."""
    if like.no_new_privileges:
        yield "setpriv=--no-new-privs"
    if like.user and like.capabilities:
        kept = ",".join(f"+cap_{bit}" for bit in range(64) if like.capabilities >> bit & 1)
        yield f"setpriv=--inh-caps=-all,{kept}"
        yield f"setpriv=--ambient-caps=-all,{kept}"


def unit_properties(like: ProcessIdentity) -> list[str]:
    """Return the properties that systemd shall set of the unit that a process like it gets. Pure."""
    found = []
    for name, value in like.cgroup_limits.items():
        if name == "cpu.max":
            quota, _, period = value.partition(" ")
            found += [
                f"CPUQuota={int(quota) * 100 // int(period)}%",
                f"CPUQuotaPeriodSec={int(period) // 1000}ms",
            ]
        else:
            found.append(f"{UNIT_PROPERTIES[name]}={value.removeprefix('default ')}")
    return found
