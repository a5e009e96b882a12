#!/bin/sh
# Starts the edge: checks the variables, all faults together, writes what depends on them, and becomes nginx.
# `start.sh --check` only asks nginx whether the configuration is right.
#
#   GATEWAYS              where gateways take shoppers' calls: host:port,host:port,…
#   GATEWAY_FEEDS         where they tell what may be refused, their OPS_PORT: address:port,…; names need RESOLVER.
#                         Absent: nothing is refused but what comes too fast
#   RESOLVER              address of a name server, for names in GATEWAY_FEEDS
#   PORT                  plain HTTP; for behind a balancer that ends TLS, and for a desk
#   TLS_PORT              TLS 1.3 with HTTP/2; at least one of the two ports
#   TLS_CERTIFICATE       file (PEM, with its chain); `self-signed` makes one, for a desk
#   TLS_KEY               file (PEM)
#   OPS_PORT              health and figures, for those inside
#   HOST                  address to listen on (0.0.0.0); `::` is all of IPv6 and nothing else
#   OPS_HOST              the same for OPS_PORT (127.0.0.1; in the image 0.0.0.0)
#   TRUSTED_BALANCERS     addresses or networks whose X-Forwarded-For is believed, 10.0.0.0/8,…; nobody's by default, and then
#                         all shoppers who come through a balancer are one address, with one limit
#   WEB_ROOT              folder of the built page (apps/web/dist); absent: gateways are asked for it
#   RATE_LIMIT_PER_ADDRESS_PER_SECOND      (10000) many shoppers may share an address; 0: no limit
#   RATE_LIMIT_PER_SHOPPER_PER_SECOND      (80) by access token, four times the gateways' own, which is exact; 0: no limit
#   CONNECTIONS_PER_ADDRESS                (2000) under way at once; 0: no limit
#   HSTS_SECONDS          (300) for how long browsers that came by TLS come by nothing else; 0: it is not said
#   WORKERS               processes (one for each core)
#   LOG_LEVEL             of nginx (crit): from `error` on, its lines name addresses of requests
#   EDGE_USER             whose the processes are that take calls, where root starts it (nginx' packaged user: www-data or nginx)
#   EDGE_HOME             folder for what is written while running (a new one below /tmp)
#   END_WITH_STDIN        `true`: ends when whoever holds our standard input is gone
set -eu
here=$(cd "$(dirname "$0")" && pwd)

faults=''
fault() { faults="$faults
  $1"; }
newline='
'
# What follows the first line would be a line of the configuration.
is_one_line() {
  case $2 in *"$newline"*) fault "$1 has more than one line" && return 1 ;; esac
}
# Name, value, pattern of grep -E, what it must be.
must_match() {
  is_one_line "$1" "$2" || return 0
  printf '%s' "$2" | grep -Eqx "$3" || fault "$1 is \"$2\", but must be $4"
}
number='[0-9]{1,7}'
address='[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*'
addresses='[A-Za-z0-9._-]+:[0-9]{1,5}(,[A-Za-z0-9._-]+:[0-9]{1,5})*'
must_match GATEWAYS "${GATEWAYS:-}" "$addresses" 'host:port,…'
[ -z "${GATEWAY_FEEDS:-}" ] || must_match GATEWAY_FEEDS "$GATEWAY_FEEDS" "$addresses" 'address:port,…'
[ -z "${RESOLVER:-}" ] || must_match RESOLVER "$RESOLVER" "$address" 'an address'
[ -n "${PORT:-}${TLS_PORT:-}" ] || fault 'PORT or TLS_PORT is missing'
[ -z "${PORT:-}" ] || must_match PORT "$PORT" '[0-9]{1,5}' 'a port'
must_match OPS_PORT "${OPS_PORT:-}" '[0-9]{1,5}' 'a port'
must_match HOST "${HOST:=0.0.0.0}" "$address" 'an address'
must_match OPS_HOST "${OPS_HOST:=127.0.0.1}" "$address" 'an address'
if [ -n "${TLS_PORT:-}" ]; then
  must_match TLS_PORT "$TLS_PORT" '[0-9]{1,5}' 'a port'
  if [ "${TLS_CERTIFICATE:-}" = self-signed ]; then
    command -v openssl > /dev/null || fault 'TLS_CERTIFICATE=self-signed needs the program openssl'
  else
    [ -r "${TLS_CERTIFICATE:-}" ] || fault 'TLS_PORT needs TLS_CERTIFICATE, a file that can be read, or self-signed'
    [ -r "${TLS_KEY:-}" ] || fault 'TLS_PORT needs TLS_KEY, a file that can be read'
  fi
fi
[ -z "${TRUSTED_BALANCERS:-}" ] ||
  must_match TRUSTED_BALANCERS "$TRUSTED_BALANCERS" '[0-9a-fA-F.:/]+(,[0-9a-fA-F.:/]+)*' 'addresses or networks, 10.0.0.0/8,…'
[ -z "${WEB_ROOT:-}" ] || [ -f "$WEB_ROOT/index.html" ] || fault "WEB_ROOT is \"$WEB_ROOT\", which has no index.html"
# In the configuration they stand between quotes.
path() {
  is_one_line "$1" "$2" || return 0
  case $2 in *[\"\$\\]*) fault "$1 is \"$2\", which has a character that nginx would take for another" ;; esac
}
path WEB_ROOT "${WEB_ROOT:-}"
path TLS_CERTIFICATE "${TLS_CERTIFICATE:-}"
path TLS_KEY "${TLS_KEY:-}"
path EDGE_HOME "${EDGE_HOME:-}"
path 'the folder of start.sh' "$here"
must_match RATE_LIMIT_PER_ADDRESS_PER_SECOND "${RATE_LIMIT_PER_ADDRESS_PER_SECOND:=10000}" "$number" 'a whole number'
must_match RATE_LIMIT_PER_SHOPPER_PER_SECOND "${RATE_LIMIT_PER_SHOPPER_PER_SECOND:=80}" "$number" 'a whole number'
must_match CONNECTIONS_PER_ADDRESS "${CONNECTIONS_PER_ADDRESS:=2000}" '[0-9]{1,5}' 'a whole number'
must_match HSTS_SECONDS "${HSTS_SECONDS:=300}" '[0-9]{1,9}' 'a number of seconds'
must_match WORKERS "${WORKERS:=auto}" '[1-9][0-9]{0,2}|auto' 'a number of processes'
must_match LOG_LEVEL "${LOG_LEVEL:=crit}" 'debug|info|notice|warn|error|crit|alert|emerg' "one of nginx' levels"

# Root opens ports and files; calls are for somebody who may do less.
is_root=false
[ "$(id -u)" != 0 ] || is_root=true
for user in nobody nginx www-data; do
  ! $is_root || [ -n "${EDGE_USER:-}" ] || ! id -u "$user" > /dev/null 2>&1 || packaged=$user
done
if [ -n "${EDGE_USER:=${packaged:-}}" ]; then
  must_match EDGE_USER "$EDGE_USER" '[A-Za-z_][A-Za-z0-9_-]*' "a user's name"
fi
# Whether the processes that take calls may: r or x, a path.
workers_may() {
  if $is_root && [ "$EDGE_USER" != root ]; then
    su -s /bin/sh "$EDGE_USER" -c 'test "-$0" "$1"' "$1" "$2" 2> /dev/null
  else
    test "-$1" "$2"
  fi
}
if $is_root && ! id -u "$EDGE_USER" > /dev/null 2>&1; then
  fault "EDGE_USER is \"$EDGE_USER\", but must be a user of this machine"
elif [ -n "${WEB_ROOT:-}" ] && [ -f "$WEB_ROOT/index.html" ] && ! workers_may r "$WEB_ROOT/index.html"; then
  fault "WEB_ROOT is \"$WEB_ROOT\", which ${EDGE_USER:-nobody} may not read; open it, or set EDGE_USER"
fi

# Writes the modules that there are, of those named.
load() {
  for module in "$@"; do [ ! -e "$modules/$module.so" ] || echo "load_module \"$modules/$module.so\";"; done
}
# Whether nginx has Lua, and Lua has lua-cjson, which comes with no other package: nginx itself is asked, and ends with the
# answer before it serves anything.
has_lua() {
  probe=$(mktemp -d)
  {
    load ndk_http_module ngx_http_lua_module
    echo 'pid nginx.pid; events {}'
    echo 'http { init_by_lua_block { os.exit(pcall(require, "cjson.safe") and 0 or 1) } }'
  } > "$probe/nginx.conf"
  found=true
  "$nginx" -p "$probe/" -c nginx.conf -e stderr > /dev/null 2>&1 || found=false
  rm -rf "$probe"
  $found
}
nginx=$(PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx) || nginx=''
if [ -z "$nginx" ]; then
  fault 'nginx is missing: apt-get install nginx libnginx-mod-http-lua lua-cjson'
else
  modules=$("$nginx" -V 2>&1 | tr ' ' '\n' | sed -n 's/^--modules-path=//p')
  has_lua || fault "$nginx has no Lua, or Lua has no cjson: apt-get install libnginx-mod-http-lua lua-cjson"
fi
if [ -n "$faults" ]; then
  echo "edge: cannot start:$faults" >&2
  exit 2
fi

if [ -n "${EDGE_HOME:-}" ]; then
  home=$EDGE_HOME
else
  home=$(mktemp -d /tmp/flash-sale-edge-XXXXXX)
  # nginx gives its workers a folder in there, and no more: what else is in there, the first process reads.
  chmod 711 "$home"
fi
mkdir -p "$home/generated"
if ! workers_may x "$home"; then
  echo "edge: cannot start: EDGE_HOME is \"$home\", which $EDGE_USER may not enter; open it, or set EDGE_USER" >&2
  exit 2
fi
cd "$home"
cp "$here/nginx.conf" nginx.conf
# As many files as we may have open; some are for other things.
ulimit -n "$(ulimit -Hn)" 2> /dev/null || true
connections=$(ulimit -n)
[ "$connections" != unlimited ] && [ "$connections" -lt 20000 ] || connections=20000
connections=$((connections - 100))
# IPv6 in brackets.
bracketed() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf '%s' "$1" ;; esac; }
each() { printf '%s' "$1" | tr ',' '\n'; echo; }

{
  load ndk_http_module ngx_http_lua_module ngx_http_brotli_filter_module ngx_http_brotli_static_module
  ! $is_root || echo "user $EDGE_USER $(id -gn "$EDGE_USER");"
  echo "worker_processes $WORKERS;"
  echo "error_log stderr $LOG_LEVEL;"
  # A request that is passed on has two.
  echo "events { worker_connections $connections; }"
} > generated/main.conf
brotli=false
[ ! -e "$modules/ngx_http_brotli_static_module.so" ] || brotli=true
{
  echo "lua_package_path \"$here/?.lua;;\";"
  [ -z "${RESOLVER:-}" ] || echo "resolver $(bracketed "$RESOLVER") valid=5s;"
  for name in client_body proxy fastcgi uwsgi scgi; do echo "${name}_temp_path temporary;"; done
  ! $brotli || echo 'brotli on; brotli_comp_level 4; brotli_min_length 1024; brotli_types application/json application/problem+json text/css text/javascript image/svg+xml;'
  each "${TRUSTED_BALANCERS:-}" | while read -r one; do [ -z "$one" ] || echo "set_real_ip_from $one;"; done
  echo 'map $https $only_by_tls {'
  [ "$HSTS_SECONDS" = 0 ] || echo "  on \"max-age=$HSTS_SECONDS\";"
  echo '  default "";'
  echo '}'
  echo 'upstream gateways {'
  echo '  zone gateways 64k;'
  each "$GATEWAYS" | while read -r one; do [ -z "$one" ] || echo "  server $one max_fails=2 fail_timeout=1s;"; done
  echo '  keepalive 128;'
  echo '  keepalive_requests 100000;'
  echo '}'
} > generated/http.conf
if $brotli; then echo 'brotli_static on;'; fi > generated/brotli.conf
{
  [ -z "${PORT:-}" ] || echo "listen $(bracketed "$HOST"):$PORT backlog=4096;"
  if [ -n "${TLS_PORT:-}" ]; then
    if [ "$TLS_CERTIFICATE" = self-signed ]; then
      TLS_CERTIFICATE=$home/self-signed.pem TLS_KEY=$home/self-signed.key
      [ -e "$TLS_CERTIFICATE" ] || (umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
        -subj /CN=localhost -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -keyout "$TLS_KEY" -out "$TLS_CERTIFICATE" 2> openssl.log)
    fi
    echo "listen $(bracketed "$HOST"):$TLS_PORT ssl http2 backlog=4096;"
    echo "ssl_certificate \"$TLS_CERTIFICATE\";"
    echo "ssl_certificate_key \"$TLS_KEY\";"
  fi
} > generated/listen.conf
echo "listen $(bracketed "$OPS_HOST"):$OPS_PORT;" > generated/ops-listen.conf
if [ "$CONNECTIONS_PER_ADDRESS" != 0 ]; then echo "limit_conn addresses $CONNECTIONS_PER_ADDRESS;"; fi > generated/limits.conf
if [ -n "${WEB_ROOT:-}" ]; then echo "root \"$WEB_ROOT\";"; cat "$here/page.conf"; fi > generated/page.conf

export GATEWAY_FEEDS="${GATEWAY_FEEDS:-}" RATE_LIMIT_PER_ADDRESS_PER_SECOND RATE_LIMIT_PER_SHOPPER_PER_SECOND
if [ "${1:-}" = --check ]; then
  [ -n "${EDGE_HOME:-}" ] || trap 'rm -rf "$home"' EXIT
  "$nginx" -p "$home/" -c nginx.conf -e stderr -t
  exit
fi
if [ "${END_WITH_STDIN:-}" = true ]; then
  # Signals by the number that nginx takes over from us.
  exec 3<&0
  (while read -r _ <&3; do :; done; kill -QUIT $$) 2> /dev/null &
  exec 3<&-
fi
exec "$nginx" -p "$home/" -c nginx.conf -e stderr -g 'daemon off;'
