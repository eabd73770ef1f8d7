#!/bin/sh
# certs.sh NAME...: makes an authority in tls/, and certificates that etcd and its clients know each other by.
# Each NAME is the host name that a member has in the endpoints. Without a new authority: leave tls/ca there.
#
#   tls/ca      the authority. Keep its key where no machine needs it
#   tls/etcd    of the members; and root, who gives rights
#   tls/agent   of the agents: etcd takes the name in it for its user "secretagent"
set -eu
[ $# -gt 0 ] || { echo "usage: certs.sh NAME..., such as certs.sh etcd-0 etcd-1 etcd-2" >&2; exit 2; }
umask 077
mkdir -p tls/ca tls/etcd tls/agent
[ -f tls/ca/ca.key ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=etcd CA' \
  -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout tls/ca/ca.key -out tls/ca/ca.crt 2>/dev/null

# issue FILE NAME EXTENSIONS: a key, and a certificate for a year.
issue() {
  printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n%s\n' "$3" >tls/ca/extensions
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1.key" -out tls/ca/request 2>/dev/null
  openssl x509 -req -in tls/ca/request -CA tls/ca/ca.crt -CAkey tls/ca/ca.key -set_serial "0x$(openssl rand -hex 16)" -days 365 \
    -extfile tls/ca/extensions -out "$1.crt" 2>/dev/null
  rm tls/ca/extensions tls/ca/request
}
names=IP:127.0.0.1
for name; do names=$names,DNS:$name; done
issue tls/etcd/tls member "extendedKeyUsage=serverAuth,clientAuth
subjectAltName=$names"
issue tls/etcd/root root extendedKeyUsage=clientAuth
issue tls/agent/tls secretagent extendedKeyUsage=clientAuth
cp tls/ca/ca.crt tls/etcd/ca.crt
cp tls/ca/ca.crt tls/agent/ca.crt
