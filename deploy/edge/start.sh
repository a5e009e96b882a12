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
#   HOST                  address to listen on (0.0.0.0)
#   OPS_HOST              the same for OPS_PORT (HOST)
#   TRUSTED_BALANCERS     addresses or networks whose X-Forwarded-For is believed, 10.0.0.0/8,…; nobody's by default
#   WEB_ROOT              folder of the built page (apps/web/dist); absent: gateways are asked for it
#   RATE_LIMIT_PER_ADDRESS_PER_SECOND      (10000) many shoppers may share an address; 0: no limit
#   RATE_LIMIT_PER_SHOPPER_PER_SECOND      (80) by access token, four times the gateways' own, which is exact; 0: no limit
#   CONNECTIONS_PER_ADDRESS                (2000) under way at once; 0: no limit
#   WORKERS               processes (one for each core)
#   LOG_LEVEL             of nginx (crit): from `error` on, its lines name addresses of requests
#   EDGE_HOME             folder for what is written while running (a new one below /tmp)
#   END_WITH_STDIN        `true`: ends when whoever holds our standard input is gone
set -eu
here=$(cd "$(dirname "$0")" && pwd)

faults=''
fault() { faults="$faults
  $1"; }
# Name, value, pattern of grep -E, what it must be.
must_match() {
  printf '%s' "$2" | grep -Eqx "$3" || fault "$1 is \"$2\", but must be $4"
}
number='[0-9]{1,7}'
addresses='[A-Za-z0-9._-]+:[0-9]{1,5}(,[A-Za-z0-9._-]+:[0-9]{1,5})*'
must_match GATEWAYS "${GATEWAYS:-}" "$addresses" 'host:port,…'
[ -z "${GATEWAY_FEEDS:-}" ] || must_match GATEWAY_FEEDS "$GATEWAY_FEEDS" "$addresses" 'address:port,…'
[ -z "${RESOLVER:-}" ] || must_match RESOLVER "$RESOLVER" '[0-9a-fA-F.:]+' 'an address'
[ -n "${PORT:-}${TLS_PORT:-}" ] || fault 'PORT or TLS_PORT is missing'
[ -z "${PORT:-}" ] || must_match PORT "$PORT" '[0-9]{1,5}' 'a port'
must_match OPS_PORT "${OPS_PORT:-}" '[0-9]{1,5}' 'a port'
must_match HOST "${HOST:=0.0.0.0}" '[0-9a-fA-F.:]+' 'an address'
must_match OPS_HOST "${OPS_HOST:=$HOST}" '[0-9a-fA-F.:]+' 'an address'
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
for path in "${WEB_ROOT:-}" "${TLS_CERTIFICATE:-}" "${TLS_KEY:-}" "$here"; do
  case $path in *[\"\$\\]*) fault "the path $path has a character that nginx would take for another" ;; esac
done
must_match RATE_LIMIT_PER_ADDRESS_PER_SECOND "${RATE_LIMIT_PER_ADDRESS_PER_SECOND:=10000}" "$number" 'a whole number'
must_match RATE_LIMIT_PER_SHOPPER_PER_SECOND "${RATE_LIMIT_PER_SHOPPER_PER_SECOND:=80}" "$number" 'a whole number'
must_match CONNECTIONS_PER_ADDRESS "${CONNECTIONS_PER_ADDRESS:=2000}" '[0-9]{1,5}' 'a whole number'
must_match WORKERS "${WORKERS:=auto}" '[1-9][0-9]{0,2}|auto' 'a number of processes'
must_match LOG_LEVEL "${LOG_LEVEL:=crit}" 'debug|info|notice|warn|error|crit|alert|emerg' "one of nginx' levels"

nginx=$(PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx) || nginx=''
if [ -z "$nginx" ]; then
  fault 'nginx is missing: apt-get install nginx libnginx-mod-http-lua lua-cjson'
else
  modules=$("$nginx" -V 2>&1 | tr ' ' '\n' | sed -n 's/^--modules-path=//p')
  [ -e "$modules/ngx_http_lua_module.so" ] ||
    fault "nginx has no Lua in $modules: apt-get install libnginx-mod-http-lua lua-cjson"
fi
if [ -n "$faults" ]; then
  echo "edge: cannot start:$faults" >&2
  exit 2
fi

home=${EDGE_HOME:-$(mktemp -d /tmp/flash-sale-edge-XXXXXX)}
mkdir -p "$home/generated"
cd "$home"
cp "$here/nginx.conf" nginx.conf
# As many files as we may have open; some are for other things.
ulimit -n "$(ulimit -Hn)" 2> /dev/null || true
connections=$(ulimit -n)
[ "$connections" != unlimited ] && [ "$connections" -lt 20000 ] || connections=20000
connections=$((connections - 100))
each() { printf '%s' "$1" | tr ',' '\n'; echo; }

{
  for module in ndk_http_module ngx_http_lua_module ngx_http_brotli_filter_module ngx_http_brotli_static_module; do
    [ ! -e "$modules/$module.so" ] || echo "load_module $modules/$module.so;"
  done
  # Root is who runs things in a container for tests; files of a checkout may be nobody else's to read.
  [ "$(id -u)" != 0 ] || echo 'user root;'
  echo "worker_processes $WORKERS;"
  echo "error_log stderr $LOG_LEVEL;"
  # A request that is passed on has two.
  echo "events { worker_connections $connections; }"
} > generated/main.conf
brotli=false
[ ! -e "$modules/ngx_http_brotli_static_module.so" ] || brotli=true
{
  echo "lua_package_path \"$here/?.lua;;\";"
  [ -z "${RESOLVER:-}" ] || echo "resolver $RESOLVER valid=5s;"
  for name in client_body proxy fastcgi uwsgi scgi; do echo "${name}_temp_path temporary;"; done
  ! $brotli || echo 'brotli on; brotli_comp_level 4; brotli_min_length 1024; brotli_types application/json application/problem+json text/css text/javascript image/svg+xml;'
  each "${TRUSTED_BALANCERS:-}" | while read -r one; do [ -z "$one" ] || echo "set_real_ip_from $one;"; done
  echo 'upstream gateways {'
  echo '  zone gateways 64k;'
  each "$GATEWAYS" | while read -r one; do [ -z "$one" ] || echo "  server $one max_fails=2 fail_timeout=1s;"; done
  echo '  keepalive 128;'
  echo '}'
} > generated/http.conf
if $brotli; then echo 'brotli_static on;'; fi > generated/brotli.conf
{
  [ -z "${PORT:-}" ] || echo "listen $HOST:$PORT backlog=4096;"
  if [ -n "${TLS_PORT:-}" ]; then
    if [ "$TLS_CERTIFICATE" = self-signed ]; then
      TLS_CERTIFICATE=$home/self-signed.pem TLS_KEY=$home/self-signed.key
      [ -e "$TLS_CERTIFICATE" ] || (umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
        -subj /CN=localhost -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -keyout "$TLS_KEY" -out "$TLS_CERTIFICATE" 2> openssl.log)
    fi
    echo "listen $HOST:$TLS_PORT ssl http2 backlog=4096;"
    echo "ssl_certificate \"$TLS_CERTIFICATE\";"
    echo "ssl_certificate_key \"$TLS_KEY\";"
  fi
} > generated/listen.conf
echo "listen $OPS_HOST:$OPS_PORT;" > generated/ops-listen.conf
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
