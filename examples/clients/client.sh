#!/bin/sh
# sh client.sh kms|aws NAME: prints the value of a secret.
set -eu
mode=$1 name=$2
agent=${AGENT:-http://127.0.0.1:2025}

# token VALUE: the token itself, or what is in the file of a file:// URL.
token() {
  case $1 in
  file://*) cat "${1#file://}" ;;
  *) printf %s "$1" ;;
  esac
}

# The header goes through standard input: a command line can be read by others.
ask() { printf 'header = "%s: %s"\n' "$1" "$2" | curl -fsS --config - "$agent$3"; }

case $mode in
kms) ask X-KMS-Token "$(token "$KMS_TOKEN")" "/v1/$name?format=raw" ;;
aws) ask X-Aws-Parameters-Secrets-Token "$(token "$AWS_TOKEN")" "/secretsmanager/get?secretId=$name&format=raw" ;;
esac
