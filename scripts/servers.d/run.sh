# shellcheck shell=bash disable=SC2154
# `scripts/servers start` and `stop`. Sourced by scripts/servers, whose names it uses.
#
# DIR/pids            NAME PID START-TIME of each process that we started
# DIR/env             what a test sources: the tools' paths and every DIR/NAME/env
# DIR/postgres/       env, port, log, data/ (with postgresql.conf) and the Unix socket
# DIR/vault/          env, log
# DIR/fakecloud/      env, log
# DIR/toxiproxy/      env, log
# DIR/vault-audit.log Vault's file audit device

# A pid alone may since have gone to another process; with its start time it names one for good.
# Field 22 of stat, counted after the command's name, which may hold spaces and brackets.
start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # shellcheck disable=SC2086 # split into fields
  set -- ${stat##*) }
  [[ $1 != Z ]] || return 1 # ended, only not yet reaped by its parent
  echo "${20}"
}

record() { # record NAME PID DIR: one line per name, the newest start counts
  local dir=$3
  { grep -v "^$1 " "$dir/pids" || true; echo "$1 $2 $(start_time "$2")"; } >"$dir/pids.new"
  mv "$dir/pids.new" "$dir/pids"
}

running() { # running NAME DIR
  local name pid started
  while read -r name pid started; do
    if [[ $name == "$1" && $(start_time "$pid") == "$started" ]]; then return 0; fi
  done <"$2/pids"
  return 1
}

# Ports from below the range that the kernel hands to outgoing connections: a server that a fault
# test stops and restarts must not find its port taken by some client in between.
free_port() {
  node -e '
    const net = require("node:net");
    const attempt = () => {
      const port = 10240 + Math.floor(Math.random() * 22000);
      net.createServer().on("error", attempt)
        .listen({ port, host: "127.0.0.1" }, function () { this.close(() => console.log(port)); });
    };
    attempt();'
}

fail_with_log() { # fail_with_log LOG MESSAGE
  tail -n 15 "$1" | sed 's/^/  /' >&2
  die "$2; the end of $1 is above"
}

# PostgreSQL refuses to run as root; its system user takes over then.
server_user() {
  local user
  if [[ $(id -u) -ne 0 ]]; then return; fi
  for user in postgres nobody; do
    if id "$user" >/dev/null 2>&1; then echo "$user"; return; fi
  done
}

start_postgres() { # start_postgres DIR
  local dir=$1 home=$1/postgres data=$1/postgres/data bin user port attempt as=()
  bin=$(locate POSTGRES_BIN) || die "PostgreSQL is not installed; run scripts/servers install postgres"
  ! running postgres "$dir" || die "PostgreSQL already runs in $dir"
  mkdir -p "$home"
  user=$(server_user)
  if [[ -n $user ]]; then
    as=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups --)
    chmod go+x "$dir"
    chown "$user" "$home"
    "${as[@]}" test -w "$home" || die "user $user cannot reach $dir: choose a folder below /tmp"
  fi
  # From here on in the server's folder: $user may not enter the one that the caller stands in.
  if [[ ! -e $data/PG_VERSION ]]; then
    # --no-sync spares only initdb's own flush; the running server has fsync on.
    (cd "$home" && "${as[@]}" "$bin/initdb" --pgdata "$data" --username postgres --auth trust \
      --encoding UTF8 --locale C --no-sync) >"$home/initdb.log" 2>&1 ||
      fail_with_log "$home/initdb.log" "initdb failed"
    # In the file, not on the command line: a test that runs postgres itself gets the same server.
    cat >>"$data/postgresql.conf" <<CONF
include 'port.conf'
listen_addresses = '127.0.0.1'
unix_socket_directories = '$home'
max_connections = 300
shared_buffers = 256MB
wal_level = replica
fsync = on
synchronous_commit = on
full_page_writes = on
CONF
  fi
  # Where nothing reaps orphans, as in many containers, a killed server stays a zombie and its lock
  # files look held. `running` above has already said that ours is gone.
  if [[ -e $data/postmaster.pid ]] && ! start_time "$(head -n 1 "$data/postmaster.pid")" >/dev/null; then
    rm -f "$data/postmaster.pid" "$home"/.s.PGSQL.*
  fi
  for attempt in 1 2 3 4 5; do
    # A restart keeps its port. A new server takes another when someone was faster on this one.
    if [[ -s $home/port ]]; then port=$(cat "$home/port"); else port=$(free_port); fi
    echo "port = $port" >"$data/port.conf"
    chmod a+r "$data/port.conf"
    if (cd "$home" && "${as[@]}" "$bin/pg_ctl" start --wait --timeout 60 --silent \
      --pgdata "$data" --log "$home/log") </dev/null >"$home/pg_ctl.log" 2>&1; then
      break
    fi
    if [[ $attempt -lt 5 && ! -s $home/port ]] && grep -q 'Address already in use' "$home/log"; then
      : >"$home/log"
      continue
    fi
    fail_with_log "$home/log" "PostgreSQL did not start"
  done
  echo "$port" >"$home/port"
  record postgres "$(head -n 1 "$data/postmaster.pid")" "$dir"
  echo "export DATABASE_URL=postgres://postgres@127.0.0.1:$port/postgres" >"$home/env"
}

# A copy of the primary's data that goes on from its WAL (streaming replication).
start_standby() { # start_standby DIR PRIMARY
  local dir=$1 primary=$2 bin user as=() data=$1/postgres/data
  bin=$(locate POSTGRES_BIN) || die "PostgreSQL is not installed; run scripts/servers install postgres"
  mkdir -p "$dir/postgres"
  [[ -e $dir/pids || $(ls -A "$dir") == postgres ]] || die "$dir is not empty and not ours"
  touch "$dir/pids"
  user=$(server_user)
  if [[ -n $user ]]; then
    as=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups --)
    chmod go+x "$dir"
    chown "$user" "$dir/postgres"
  fi
  (cd "$dir/postgres" && "${as[@]}" "$bin/pg_basebackup" --pgdata "$data" --write-recovery-conf --checkpoint fast \
    --no-sync --host 127.0.0.1 --port "$(cat "$primary/postgres/port")" --username postgres) \
    >"$dir/postgres/basebackup.log" 2>&1 || fail_with_log "$dir/postgres/basebackup.log" "pg_basebackup failed"
  echo "unix_socket_directories = '$dir/postgres'" >>"$data/postgresql.conf"
  start_servers postgres "$dir"
}

start_vault() { # start_vault DIR
  local dir=$1 home=$1/vault bin port token pid attempt audit=$1/vault-audit.log
  bin=$(locate VAULT) || die "Vault is not installed; run scripts/servers install vault"
  ! running vault "$dir" || die "Vault already runs in $dir"
  mkdir -p "$home"
  token=byok-test-$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
  for attempt in 1 2 3 4 5; do
    port=$(free_port)
    # A clean environment: the caller's own VAULT_ variables and ~/.vault-token stay out of it.
    # setsid: a Ctrl-C meant for the tests leaves the server to `stop`.
    (cd "$home" && exec setsid env -i PATH="$PATH" HOME="$home" VAULT_DEV_ROOT_TOKEN_ID="$token" \
      "$bin" server -dev -dev-no-store-token -dev-listen-address="127.0.0.1:$port") \
      </dev/null >"$home/log" 2>&1 &
    pid=$!
    if node "$repo/scripts/servers.d/vault-setup.mjs" "$pid" "http://127.0.0.1:$port" "$token" "$audit" \
      2>"$home/setup.log"; then
      break
    fi
    kill "$pid" 2>/dev/null || true
    wait "$pid" || true
    if [[ $attempt -lt 5 ]] && grep -q 'address already in use' "$home/log"; then continue; fi
    cat "$home/setup.log" >&2
    fail_with_log "$home/log" "Vault did not start"
  done
  record vault "$pid" "$dir"
  # Vault prints the key some moments after it first answers.
  local unseal_key="" wait
  for wait in {1..100}; do
    unseal_key=$(sed -n 's/^Unseal Key: //p' "$home/log")
    [[ -z $unseal_key ]] || break
    sleep 0.1
  done
  [[ -n $unseal_key ]] || fail_with_log "$home/log" "Vault printed no unseal key"
  cat >"$home/env" <<ENV
export BYOK_TEST_VAULT_ADDR=http://127.0.0.1:$port
export BYOK_TEST_VAULT_TOKEN=$token
export BYOK_TEST_VAULT_UNSEAL_KEY=$unseal_key
export BYOK_TEST_VAULT_AUDIT=$audit
ENV
}

# start_plain DIR NAME BIN CHECK ARGS...: a server that needs no more than a port, which replaces PORT in ARGS and CHECK.
start_plain() {
  local dir=$1 name=$2 bin=$3 check=$4 home=$1/$2 port pid attempt tries
  shift 4
  ! running "$name" "$dir" || die "$name already runs in $dir"
  mkdir -p "$home"
  for attempt in 1 2 3 4 5; do
    port=$(free_port)
    # A clean environment, and away from our Ctrl-C, as for Vault.
    (cd "$home" && exec setsid env -i PATH="$PATH" HOME="$home" "$bin" "${@//PORT/$port}") \
      </dev/null >"$home/log" 2>&1 &
    pid=$!
    for ((tries = 0; tries < 300; tries++)); do
      if node -e 'fetch(process.argv[1]).then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))' \
        "${check//PORT/$port}"; then break 2; fi
      start_time "$pid" >/dev/null || break
      sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
    wait "$pid" || true
    if [[ $attempt -lt 5 ]] && grep -qi 'address already in use' "$home/log"; then continue; fi
    fail_with_log "$home/log" "$name did not start"
  done
  record "$name" "$pid" "$dir"
  echo "export BYOK_TEST_${name^^}_ADDR=http://127.0.0.1:$port" >"$home/env"
}

# Strict: identity policies are enforced and signatures verified.
start_fakecloud() { # start_fakecloud DIR
  local bin
  bin=$(locate FAKECLOUD) || die "fakecloud is not installed; run scripts/servers install fakecloud"
  start_plain "$1" fakecloud "$bin" http://127.0.0.1:PORT/_fakecloud/health \
    --addr 127.0.0.1:PORT --iam strict --verify-sigv4
}

start_toxiproxy() { # start_toxiproxy DIR
  local bin
  bin=$(locate TOXIPROXY) || die "Toxiproxy is not installed; run scripts/servers install toxiproxy"
  start_plain "$1" toxiproxy "$bin" http://127.0.0.1:PORT/proxies -port PORT
}

start_servers() { # start_servers start|postgres|vault|fakecloud|toxiproxy DIR
  local what=$1 dir=$2
  if [[ -z $dir ]]; then
    [[ $what == start ]] || die "usage: scripts/servers start-$what DIR"
    dir=$(mktemp -d "${TMPDIR:-/tmp}/byok-servers.XXXXXX")
  fi
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  # These go into configuration files and lists, where they would need escapes.
  [[ $dir != *[\'\",\ ]* ]] || die "no quotes, commas or spaces in DIR, please: $dir"
  # `stop` removes DIR, so it must never be a folder with something else in it.
  [[ -e $dir/pids || -z $(ls -A "$dir") ]] || die "$dir is not empty and not ours"
  touch "$dir/pids"
  # When a later server fails to start, the earlier ones must not be left behind.
  [[ $what != start ]] || trap 'stop_processes "$dir"' EXIT
  local server
  for server in postgres vault fakecloud toxiproxy; do
    [[ $what != start && $what != "$server" ]] || "start_$server" "$dir"
  done
  { tool_lines; cat "$dir"/*/env; } >"$dir/env.new"
  mv "$dir/env.new" "$dir/env"
  trap - EXIT
  echo "$dir"
}

# Ends what DIR/pids records, and only that. PostgreSQL ends at once on QUIT: its data goes away
# with DIR, so there is nothing to write back.
stop_processes() {
  local name pid started signal tries
  while read -r name pid started; do
    for signal in TERM KILL; do
      [[ $name-$signal != postgres-TERM ]] || signal=QUIT
      [[ $(start_time "$pid") == "$started" ]] || break
      kill "-$signal" "$pid" 2>/dev/null || break
      for ((tries = 0; tries < 100; tries++)); do
        [[ $(start_time "$pid") == "$started" ]] || break
        sleep 0.05
      done
    done
  done <"$1/pids"
}

stop_servers() { # stop_servers DIR
  local dir
  [[ -e $1/pids ]] || die "$1 was not made by scripts/servers start"
  dir=$(cd "$1" && pwd)
  stop_processes "$dir"
  rm -rf "$dir"
}
