#!/usr/bin/env bash
# Prints the Secrets that the manifests name, from infra/.env: the template of which is .env.example.
# Nothing is printed while a value is missing. Values never stand in arguments.
#
#   infra/kubernetes/secrets.sh | kubectl apply -f -
#   infra/kubernetes/secrets.sh --env-file prod.env --pipelines team-a | kubectl apply -f -
#
# --env-file FILE       default: infra/.env
# --platform NAMESPACE  of MLflow and the server; default: exemplar
# --pipelines NAMESPACE in which runs start; default: kubeflow
set -euo pipefail

env_file="$(dirname "$0")/../.env" platform=exemplar pipelines=kubeflow
while (($#)); do
  case "$1" in
    --env-file) env_file=${2:?--env-file needs a file} ;;
    --platform) platform=${2:?--platform needs a namespace} ;;
    --pipelines) pipelines=${2:?--pipelines needs a namespace} ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
if [[ ! -f $env_file ]]; then
  echo "$env_file does not exist. Copy infra/.env.example there and give every value." >&2
  exit 2
fi

value() { # NAME: what the file gives it, the last time
  sed -n "s/^$1=//p" "$env_file" | tail -n 1
}

required=(POSTGRES_PASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_AUTH_ADMIN_USERNAME
  MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY EXEMPLAR_PASSWORD_PIPELINE
  EXEMPLAR_PASSWORD_SERVING)
missing=()
for name in "${required[@]}"; do [[ -n $(value "$name") ]] || missing+=("$name"); done
if ((${#missing[@]})); then
  echo "$env_file gives no value for: ${missing[*]}" >&2
  exit 2
fi

secret() { # NAMESPACE NAME KEY=VALUE...; a key without a value is left out
  local namespace=$1 name=$2
  shift 2
  echo ---
  printf '%s\n' "$@" | sed '/=$/d' | kubectl create secret generic "$name" --namespace "$namespace" \
    --dry-run=client --output yaml --from-env-file /dev/stdin
}

secret "$platform" exemplar-mlflow-server \
  "POSTGRES_PASSWORD=$(value POSTGRES_PASSWORD)" \
  "MLFLOW_AUTH_ADMIN_USERNAME=$(value MLFLOW_AUTH_ADMIN_USERNAME)" \
  "MLFLOW_AUTH_ADMIN_PASSWORD=$(value MLFLOW_AUTH_ADMIN_PASSWORD)" \
  "MLFLOW_FLASK_SERVER_SECRET_KEY=$(value MLFLOW_FLASK_SERVER_SECRET_KEY)"
secret "$platform" exemplar-mlflow-users \
  "EXEMPLAR_PASSWORD_PIPELINE=$(value EXEMPLAR_PASSWORD_PIPELINE)" \
  "EXEMPLAR_PASSWORD_SERVING=$(value EXEMPLAR_PASSWORD_SERVING)"
secret "$platform" exemplar-mlflow \
  MLFLOW_TRACKING_USERNAME=serving "MLFLOW_TRACKING_PASSWORD=$(value EXEMPLAR_PASSWORD_SERVING)"
secret "$pipelines" exemplar-mlflow \
  "MLFLOW_TRACKING_URI=http://mlflow.$platform.svc.cluster.local:5000" \
  MLFLOW_TRACKING_USERNAME=pipeline "MLFLOW_TRACKING_PASSWORD=$(value EXEMPLAR_PASSWORD_PIPELINE)"
secret "$platform" exemplar-s3 \
  "AWS_ACCESS_KEY_ID=$(value AWS_ACCESS_KEY_ID)" \
  "AWS_SECRET_ACCESS_KEY=$(value AWS_SECRET_ACCESS_KEY)"
# Those of a run may be empty: its files go through MLflow, and not every source or model has a key.
secret "$pipelines" exemplar-s3 \
  "AWS_ENDPOINT_URL=$(value EXEMPLAR_DATA_ENDPOINT_URL)" \
  "AWS_DEFAULT_REGION=$(value EXEMPLAR_DATA_REGION)" \
  "AWS_ACCESS_KEY_ID=$(value EXEMPLAR_DATA_ACCESS_KEY_ID)" \
  "AWS_SECRET_ACCESS_KEY=$(value EXEMPLAR_DATA_SECRET_ACCESS_KEY)"
secret "$pipelines" exemplar-lm \
  "EXEMPLAR_LM_API_KEY=$(value EXEMPLAR_LM_API_KEY)" "HF_TOKEN=$(value HF_TOKEN)"
