#!/bin/sh
# An application that reads its settings from a .env file.
set -eu
set -a
. ./var/app/.env
set +a
printf '%s\n' "$DB_PASSWORD" "$DB_URL" "$DB_USERNAME" "$STRIPE_KEY"
