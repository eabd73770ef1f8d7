#!/bin/sh
# Asks an agent with curl as the documentation of Alibaba's KMS Agent does, and as that of the AWS
# agent does. Prints one line a step: client | operation | result.
set -eu

# step CLIENT OPERATION HEADER URL
step() {
  printf '%s | %s | ' "$1" "$2"
  curl -s -w ' (%{http_code})\n' -H "$3" "$4" | tr -d '\n'
  echo
}

kms="X-KMS-Token: $(cat "${KMS_TOKEN#file://}")"
step "KMS Agent, curl" read "$kms" "$AGENT/v1/demo/db"
step "KMS Agent, curl" "read by secretId" "$kms" "$AGENT/secretsmanager/get?secretId=demo/db"
step "KMS Agent, curl" "read binary" "$kms" "$AGENT/v1/demo/key"
step "KMS Agent, curl" "old version" "$kms" "$AGENT/secretsmanager/get?secretId=demo/db&versionStage=ACSPrevious"
step "KMS Agent, curl" missing "$kms" "$AGENT/v1/demo/none"
step "KMS Agent, curl" denied "$kms" "$AGENT/v1/other/db"
step "KMS Agent, curl" "wrong token" "X-KMS-Token: wrong" "$AGENT/v1/demo/db"

aws="X-Aws-Parameters-Secrets-Token: $(cat "${AWS_TOKEN#file://}")"
step "AWS agent, curl" read "$aws" "$AGENT/secretsmanager/get?secretId=demo/db"
step "AWS agent, curl" "read by path" "$aws" "$AGENT/v1/demo/db"
step "AWS agent, curl" "read binary" "$aws" "$AGENT/v1/demo/key"
step "AWS agent, curl" missing "$aws" "$AGENT/v1/demo/none"
step "AWS agent, curl" denied "$aws" "$AGENT/v1/other/db"
step "AWS agent, curl" "wrong token" "X-Aws-Parameters-Secrets-Token: wrong" "$AGENT/v1/demo/db"
