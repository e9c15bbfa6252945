#!/bin/bash
# Writes the secrets that /etc/cloudsync/secrets lists (variable, ARN, field) to memory, for the container alone.
set -euo pipefail
LIST=${LIST:-/etc/cloudsync/secrets}
TARGET=${TARGET:-/run/cloudsync/secrets.env}
umask 077
mkdir -p "$(dirname "$TARGET")"
while read -r variable arn field; do
  value=$(aws secretsmanager get-secret-value --secret-id "$arn" --query SecretString --output text)
  if [ -n "$field" ]; then
    value=$(jq --exit-status --raw-output --arg field "$field" '.[$field]' <<<"$value")
  fi
  printf '%s=%s\n' "$variable" "$value"
done <"$LIST" >"$TARGET.new"
mv "$TARGET.new" "$TARGET"
