"""What is on a host, for tests that compare it; and a docker-ce for a host that has a docker of somebody else."""

from __future__ import annotations

#: Everything that a person would look for: files, accounts, enabled units, tables, holds and packages.
SNAPSHOT = r"""
find /etc /usr/local /opt /srv /root /var/lib/vllm /var/cache/vllm /run/vllm* -xdev \( -type f -o -type l \) \
    2> /dev/null | grep -v -e '^/etc/ssl/certs' -e '-$' -e '^/etc/ld.so.cache' -e '^/root/.ansible'
getent passwd | sed 's/^/account /'
getent group | sed 's/^/group /'
systemctl list-unit-files --no-legend --state=enabled | awk '{print "enabled " $1}'
nft list tables 2> /dev/null
apt-mark showhold | sed 's/^/held /'
dpkg-query -W -f '${db:Status-Status} ${Package}\n' | grep -v '^not-installed'
"""
#: Packages of Docker -> the package of Debian whose programs they get here, and their relations: those of
#: docker/docker-ce-packaging, deb/common/control (01a9b28), and docker/containerd-packaging, debian/control (0e59ba5).
_RELATIONS = {
    "containerd.io": ("containerd", "Provides: containerd, runc", "Conflicts: containerd, runc"),
    "docker-ce-cli": ("cli", "Conflicts: docker.io"),
    "docker-ce": ("docker.io", "Depends: containerd.io, docker-ce-cli, iptables, adduser", "Conflicts: docker.io"),
}
_UNPACK = """\
set -e
export DEBIAN_FRONTEND=noninteractive
mkdir -p /root/debs
cd /root/debs
apt-get update -q > /dev/null
apt-get download -q docker.io containerd runc tini > /dev/null
for name in docker.io containerd runc tini; do dpkg-deb -R ${name}_*.deb $name; rm ${name}_*.deb; done
cp -a runc/usr containerd/
# Docker's own package has its docker-init; Debian's links to that of another package.
cp -a tini/usr docker.io/
mkdir -p cli/DEBIAN cli/usr/bin
mv docker.io/usr/bin/docker cli/usr/bin/
"""
_INSTALL = """\
apt-get install -qq -y --no-install-recommends ./*.deb > /root/debs.log 2>&1 || { cat /root/debs.log >&2; exit 1; }
cd /
rm -r /root/debs /root/debs.log
mkdir -p /etc/docker
printf '{ "labels": ["owner=shop"],\\n   "insecure-registries": ["shop.example:80"] }' > /etc/docker/daemon.json
chmod 640 /etc/docker/daemon.json
systemctl restart docker
"""


def docker_ce() -> str:
    """A script that gives a host Docker's own packages, with settings of somebody else in a formatting of their own."""
    words = [_UNPACK]
    for name, (folder, *relations) in _RELATIONS.items():
        fields = [
            *(f"Package: {name}", "Version: 5:28.0.1-1", "Architecture: amd64", "Maintainer: t <t@localhost>"),
            *relations,
            "Description: stand-in around Debian's programs",
        ]
        words.append(f"cat > {folder}/DEBIAN/control <<'END'\n" + "\n".join(fields) + "\nEND\n")
        words.append(f"dpkg-deb -Znone -b {folder} {name}.deb > /dev/null\n")
    return "".join(words) + _INSTALL
