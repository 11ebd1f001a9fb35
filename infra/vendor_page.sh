#!/bin/sh
# Fetch the page's two libraries as npm packages, check their digests, and write them beside the page
# as ES modules without bare imports: sh infra/vendor_page.sh (needs npm; run after changing a version).
set -eu
target=$(cd "$(dirname "$0")/.." && pwd)/rdm/serving/page/vendor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent preact@11.2.0 htm@3.1.1 >/dev/null
sha256sum --check --quiet <<SUMS
3c4456766bd32b6b534d52bf4e9c2a29b33e7eedf6e96ed479300ba1a7888ebf  preact-11.2.0.tgz
2425b9bee11409177bcabc7f32e319926fc6690c1701c0b257c88bdff2d5ba90  htm-3.1.1.tgz
SUMS
mkdir -p preact htm "$target"
tar xzf preact-11.2.0.tgz -C preact
tar xzf htm-3.1.1.tgz -C htm

# A bare import would need an import map, which is an inline script that the page's policy forbids.
module() { # comment, source, name
  { printf '/*! %s */\n' "$1"; sed -e 's#from"preact"#from"./preact.js"#g' -e '/^\/\/# sourceMappingURL=/d' "$2"; } >"$target/$3"
}
module "preact 11.2.0, MIT, see LICENSE.preact" preact/package/dist/preact.mjs preact.js
module "preact/hooks 11.2.0, MIT, see LICENSE.preact" preact/package/hooks/dist/hooks.mjs hooks.js
module "htm 3.1.1, Apache-2.0, see LICENSE.htm" htm/package/dist/htm.mjs htm.js
cp preact/package/LICENSE "$target/LICENSE.preact"
cp htm/package/LICENSE "$target/LICENSE.htm"
