#!/bin/sh
# Builds a Debian package from a release build with dpkg-deb: packaging/deb/build.sh [OUTPUT-DIRECTORY]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../target}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
"$here/../install.sh" --prefix /usr --destdir "$root" >/dev/null
# On Debian /sbin is a link to /usr/sbin; a package that brings /sbin as a directory would break it.
mkdir -p "$root/usr/sbin"
mv "$root/sbin/mount.gfs" "$root/usr/sbin/mount.gfs"
rmdir "$root/sbin"
# dpkg looks after changed configuration itself.
rm -rf "$root/usr/lib/gfs"
mkdir -p "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" "$here/control" >"$root/DEBIAN/control"
printf '/etc/gfs/%s.toml\n' master chunkd fuse client >"$root/DEBIAN/conffiles"
for script in postinst prerm; do
    cp "$here/$script" "$root/DEBIAN/$script"
    chmod 755 "$root/DEBIAN/$script"
done
mkdir -p "$out"
dpkg-deb --root-owner-group --build "$root" "$out/gfs_${version}_$architecture.deb"
