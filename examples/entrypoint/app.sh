#!/bin/sh
# Stands for an application: says what it was started with, and ends when asked to.
trap 'echo stopping; exit 0' TERM
trap 'exit 7' USR1
echo "started: user $DB_USER, a password of ${#DB_PASSWORD} characters, INHERITED=${INHERITED-}"
while :; do
  sleep 0.2 &
  wait $!
done
