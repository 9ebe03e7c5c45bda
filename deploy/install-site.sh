#!/bin/sh
# Installs or upgrades an Asterion site on a machine with systemd (Debian 12, Ubuntu 24.04 and alike):
#   sudo sh install-site.sh asterion_shared-*.whl asterion_client-*.whl
# It may be run again at any time. A new version stands beside the old one until it is complete; then
# the link /opt/asterion is moved to it. Settings, keys and state are never touched once they exist.
set -eu

usage() {
    cat <<'TEXT'
usage: install-site.sh [options] WHEEL WHEEL
  WHEEL               asterion_shared-*.whl and asterion_client-*.whl, of one version
  --extra NAME        medical (NIfTI, DICOM) or astro (FITS); may be given twice
  --task NAME         of a new site.toml: segmentation (default), classification, anomaly
  --format NAME       of a new site.toml: nifti (default), dicom, fits, npz, table
  --packages DIR      install from the packages in this folder alone, without a network
  --gpu               let the service use NVIDIA GPUs
  --python PROGRAM    Python 3.11 to 3.13 (default: python3)
  --root DIR          a trial below DIR: no user is made, no service loaded
TEXT
}

fail() { echo "install-site: $1" >&2; exit 2; }

extras='' task=segmentation format=nifti packages='' gpu='' python=python3 root=''
while [ $# -gt 0 ]; do
    case $1 in
        -h|--help) usage; exit 0 ;;
        --gpu) gpu=yes; shift; continue ;;
        --extra|--task|--format|--packages|--python|--root)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help" ;;
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
    case $1 in
        --extra) extras="${extras:+$extras,}$2" ;;
        --task) task=$2 ;;
        --format) format=$2 ;;
        --packages) packages=$2 ;;
        --python) python=$2 ;;
        --root) root=$2 ;;
    esac
    shift 2
done

shared='' client=''
for wheel; do
    case ${wheel##*/} in
        asterion_shared-*.whl) shared=$wheel ;;
        asterion_client-*.whl) client=$wheel ;;
        *) fail "$wheel is neither asterion_shared-*.whl nor asterion_client-*.whl" ;;
    esac
    [ -f "$wheel" ] || fail "$wheel does not exist"
done
[ $# -eq 2 ] && [ -n "$shared" ] && [ -n "$client" ] || fail "give the two wheels once each; see --help"
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run it as root (sudo), or with --root DIR"
"$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    2>/dev/null || fail "$python is not Python 3.11 to 3.13 with venv (Debian: apt install python3-venv)"
version_of() { name=${1##*/}; name=${name#*-}; echo "${name%%-*}"; }
version=$(version_of "$client")
[ "$(version_of "$shared")" = "$version" ] || fail "the two wheels are of different versions"

etc=$root/etc/asterion/site state=$root/var/lib/asterion units=$root/etc/systemd/system
umask 022
if [ -z "$root" ] && ! id asterion >/dev/null 2>&1; then
    useradd --system --user-group --home-dir /var/lib/asterion --shell /usr/sbin/nologin asterion
fi

# Named by what is in it: the same wheels twice are the same folder, and nothing is done.
content=$( { cat "$shared" "$client"; echo "$extras"; } | sha256sum | cut -c1-12)
program=/opt/asterion-$version-$content
if [ ! -e "$root$program/complete" ]; then
    rm -rf "$root$program"
    mkdir -p "$root/opt"
    "$python" -m venv "$root$program"
    pip="$root$program/bin/python -m pip install --quiet --disable-pip-version-check"
    "$root$program/bin/python" - "$client" "$root$program" <<'PYTHON'
import sys, zipfile
archive, folder = zipfile.ZipFile(sys.argv[1]), sys.argv[2]
prefix = "asterion_client/deploy/"
for name in archive.namelist():
    if name.startswith(prefix) and not name.endswith("/"):
        with open(f"{folder}/{name.removeprefix(prefix)}", "wb") as file:
            file.write(archive.read(name))
PYTHON
    # shellcheck disable=SC2086  # several words
    $pip --constraint "$root$program/constraints.txt" \
        ${packages:+--no-index --find-links "$packages"} \
        "$shared" "$client${extras:+[$extras]}"
    touch "$root$program/complete"
fi
ln -sfn "${program##*/}" "$root/opt/asterion.new"
mv -T "$root/opt/asterion.new" "$root/opt/asterion"

mkdir -p "$units" "$state" "$etc"
for unit in asterion-site.service asterion-site-status.service asterion-site-status.timer; do
    cp "$root$program/$unit" "$units/$unit"
done
if [ -n "$gpu" ]; then
    mkdir -p "$units/asterion-site.service.d"
    cp "$root$program/asterion-site-gpu.conf" "$units/asterion-site.service.d/gpu.conf"
fi
if [ ! -e "$etc/site.toml" ]; then
    "$root$program/bin/asterion" site new "$task" "$format" > "$etc/.site.toml.new"
    sed -i 's|^state_folder = .*|state_folder = "/var/lib/asterion"|' "$etc/.site.toml.new"
    mv "$etc/.site.toml.new" "$etc/site.toml"
    written=yes
fi
chmod 0700 "$state" "$etc"
chmod 0600 "$etc/site.toml"
if [ -z "$root" ]; then
    chown asterion:asterion "$state" "$etc" "$etc/site.toml"
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl try-restart asterion-site.service
    fi
fi

echo "asterion $version is installed: $root/opt/asterion -> $program"
[ -z "${written:-}" ] || echo "settings to fill in: $etc/site.toml"
cat <<TEXT
next, once:
  sudo -u asterion /opt/asterion/bin/asterion site init /etc/asterion/site/site.toml
  send the request that it makes to the coordinator's operator, and with the answer:
  sudo -u asterion /opt/asterion/bin/asterion site join /etc/asterion/site/site.toml NAME.enrolment.json
  sudo -u asterion /opt/asterion/bin/asterion site check /etc/asterion/site/site.toml
  sudo systemctl enable --now asterion-site.service asterion-site-status.timer
back to an earlier version: sudo ln -sfn asterion-VERSION-... /opt/asterion && sudo systemctl restart asterion-site
TEXT
