#!/bin/bash
# Waits until auto scaling wants this instance gone, lets the gateway drain, then lets the instance go.
set -euo pipefail
METADATA=${METADATA:-http://169.254.169.254}
POLL_S=${POLL_S:-5}

metadata() {
  local token
  token=$(curl -fsS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$METADATA/latest/api/token") &&
    curl -fsS -H "X-aws-ec2-metadata-token: $token" "$METADATA/latest/meta-data/$1"
}

until [ "$(metadata autoscaling/target-lifecycle-state 2>/dev/null)" = Terminated ]; do
  sleep "$POLL_S"
done
systemctl stop cloudsync-gateway
aws autoscaling complete-lifecycle-action --lifecycle-action-result CONTINUE --lifecycle-hook-name drain \
  --auto-scaling-group-name "$(metadata tags/instance/aws:autoscaling:groupName)" \
  --instance-id "$(metadata instance-id)"
