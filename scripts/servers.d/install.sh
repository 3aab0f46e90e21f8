# shellcheck shell=bash disable=SC2154
# `scripts/servers install`. Sourced by scripts/servers, whose names it uses.

# Is this tool in place? The names are those of `install`.
installed() {
  case $1 in
    vault) locate VAULT ;;
    fakecloud) locate FAKECLOUD ;;
    toxiproxy) locate TOXIPROXY ;;
    python) locate PYTHON ;;
    npm) locate NODE_MODULES ;;
    promtool) locate PROMTOOL ;;
    postgres) locate POSTGRES_BIN ;;
    pgbouncer) locate PGBOUNCER ;;
    browser) locate CHROMIUM && locate CHROMEDRIVER ;;
    *) die "unknown tool: $1 (known: ${all_tools[*]})" ;;
  esac >/dev/null
}

debian_packages() {
  case $1 in
    postgres) echo "postgresql-$POSTGRES_MAJOR" ;;
    pgbouncer) echo pgbouncer ;;
    browser) echo chromium chromium-driver ;;
  esac
}

# Vault has no package in a registry that everyone reaches, but its Go module builds as a tool.
install_vault() {
  local bin build
  bin=$(vault_bin)
  build=$cache/vault-build
  command -v go >/dev/null || { echo "go is not on PATH: install Go 1.25.3 or newer"; return 1; }
  mkdir -p "$build/tmp" "$(dirname "$bin")"
  # Go's caches for this one build take 6 GB and serve nothing else, so they get a folder of their
  # own, kept when the build is cut short (the next one goes on from there) and removed at its end.
  # `-mod=readonly` holds the build to the committed go.sum. -modcacherw makes the folder removable.
  (
    cd "$repo/tests/servers/vault"
    GOCACHE=$build/cache GOMODCACHE=$build/mod GOTMPDIR=$build/tmp GOFLAGS='-mod=readonly -modcacherw' \
      CGO_ENABLED=0 GOWORK=off nice -n 10 \
      go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$bin.new" github.com/hashicorp/vault
  ) || return 1
  "$bin.new" version | grep -F "Vault v$VAULT_VERSION" || { echo "the build is not Vault $VAULT_VERSION"; return 1; }
  mv "$bin.new" "$bin" # only a complete binary ever has the final name
  rm -rf "$build"
}

# AGPL: a process of its own, never linked or shipped. Without optimisation and debug information it takes half the time.
install_fakecloud() {
  local dir
  dir=$(fakecloud_dir)
  rm -rf "$dir"
  CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=true nice -n 10 \
    cargo install --quiet --locked --debug --root "$dir.new" --target-dir "$cache/fakecloud-build" \
    "fakecloud@$FAKECLOUD_VERSION" || return 1
  mv "$dir.new" "$dir"
  rm -rf "$cache/fakecloud-build"
}

install_toxiproxy() {
  local bin
  bin=$(toxiproxy_bin)
  command -v go >/dev/null || { echo "go is not on PATH: install Go 1.25.3 or newer"; return 1; }
  mkdir -p "$(dirname "$bin")"
  (
    cd "$repo/tests/servers/toxiproxy"
    GOFLAGS=-mod=readonly CGO_ENABLED=0 GOWORK=off go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$bin.new" .
  ) || return 1
  mv "$bin.new" "$bin"
}

install_python() {
  local dir new
  dir=$(python_dir)
  new=$dir.new
  command -v python3 >/dev/null || { echo "python3 is not on PATH: install Python 3.11 or newer"; return 1; }
  rm -rf "$new" "$dir"
  # At its final place, since a virtual environment holds its own path; the interpreter's name comes last.
  python3 -m venv "$dir" || { rm -rf "$dir"; echo "python3 -m venv failed (Debian: python3-venv)"; return 1; }
  mv "$dir/bin/python" "$dir/bin/python.new"
  "$dir/bin/python3" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
    -r "$repo/tests/servers/python/requirements.txt" || return 1
  mv "$dir/bin/python.new" "$dir/bin/python"
}

install_npm() {
  local dir new
  dir=$(npm_dir)
  new=$dir.new
  command -v npm >/dev/null || { echo "npm is not on PATH: install Node.js 20 or newer with npm"; return 1; }
  rm -rf "$new" "$dir"
  mkdir -p "$new"
  cp "$repo"/tests/servers/npm/{package.json,package-lock.json,.npmrc} "$new"
  # --ignore-scripts: no package may run code on install, nor fetch a browser of its own.
  (cd "$new" && npm ci --ignore-scripts --no-audit --no-fund) || return 1
  mv "$new" "$dir"
}

# Out of Debian's package of Prometheus, which is not installed: it would start a server of its own.
install_promtool() {
  local dir new
  dir=$(promtool_dir)
  new=$dir.new
  command -v apt-get >/dev/null || { echo "this system has no apt-get: put promtool into $dir"; return 1; }
  rm -rf "$new" "$dir"
  mkdir -p "$new"
  (
    cd "$new"
    # A new machine knows no packages yet.
    apt-get -q download prometheus || { as_root apt-get -q -o DPkg::Lock::Timeout=300 update; apt-get -q download prometheus; }
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - --strip-components=3 ./usr/bin/promtool
    rm prometheus_*.deb
  ) || return 1
  mv "$new" "$dir"
}

as_root() { if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo -n "$@"; fi; }

install_debian() {
  local as_root=() apt
  [[ $(id -u) -eq 0 ]] || as_root=(sudo -n)
  command -v apt-get >/dev/null || { echo "this system has no apt-get: install what Debian calls $*"; return 1; }
  if [[ ${#as_root[@]} -gt 0 ]] && ! "${as_root[@]}" true 2>/dev/null; then
    echo "needs root: sudo apt-get install --no-install-recommends $*"
    return 1
  fi
  apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
  # Without an update first, a new machine knows no packages, or versions that are gone by now.
  "${as_root[@]}" "${apt[@]}" update || echo "apt-get update failed; trying with the lists at hand"
  "${as_root[@]}" "${apt[@]}" install --no-install-recommends "$@"
}

# install_tools [TOOL...]: nothing missing, nothing done. Otherwise what is not Debian's goes to the background,
# as Vault and fakecloud take far longer than the rest together, and Debian's packages come meanwhile.
install_tools() {
  local tools=("$@") packages=() failed=() logs tool log
  declare -gA jobs=() # global: the trap below outlives this function
  [[ ${#tools[@]} -gt 0 ]] || tools=("${all_tools[@]}")
  mkdir -p "$cache"
  # One install at a time on one cache: a second one waits, then finds everything in place.
  exec 9>"$cache/lock"
  flock 9
  logs=$cache/logs
  mkdir -p "$logs"
  # Job control gives each background job a process group, so that Ctrl-C can end it with its children.
  set -m
  trap 'for job in "${jobs[@]}"; do kill -- "-$job" 2>/dev/null || true; done' EXIT
  trap 'exit 130' INT TERM

  for tool in "${tools[@]}"; do
    if installed "$tool"; then continue; fi
    case $tool in
      vault | fakecloud | toxiproxy | python | npm | promtool)
        note "installing $tool in the background, log: $logs/$tool.log"
        "install_$tool" >"$logs/$tool.log" 2>&1 </dev/null &
        jobs[$tool]=$!
        ;;
      *)
        # shellcheck disable=SC2207 # package names hold no spaces
        packages+=($(debian_packages "$tool"))
        ;;
    esac
  done
  if [[ ${#packages[@]} -gt 0 ]]; then
    note "installing Debian packages: ${packages[*]}"
    install_debian "${packages[@]}" >"$logs/debian.log" 2>&1 </dev/null || true # judged below
  fi
  for tool in "${!jobs[@]}"; do
    wait "${jobs[$tool]}" || true
    unset "jobs[$tool]"
  done

  for tool in "${tools[@]}"; do
    if installed "$tool"; then continue; fi
    failed+=("$tool")
    log=$logs/$tool.log
    packages=("$(debian_packages "$tool")")
    [[ -z ${packages[0]} ]] || log=$logs/debian.log
    tail -n 5 "$log" | sed 's/^/  /' >&2
    note "could not install $tool${packages[0]:+ (Debian: apt-get install ${packages[0]})}, log: $log"
  done
  [[ ${#failed[@]} -eq 0 ]] || die "still missing: ${failed[*]}"
  note "in place: ${tools[*]}"
}
