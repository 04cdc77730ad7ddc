#!/bin/bash
# Runs as root on every host at each boot.
set -e
export HOME=/root
bucket={{bucket|sh}}
if [ -n "$bucket" ]; then
    if ! command -v gcsfuse; then
        key=/usr/share/keyrings/cloud.google.asc
        curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg > $key
        release=gcsfuse-$(lsb_release -c -s)
        echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $release main" \
            > /etc/apt/sources.list.d/gcsfuse.list
        apt-get update && apt-get install -y gcsfuse
    fi
    mkdir -p /runs
    mountpoint -q /runs || gcsfuse --implicit-dirs "$bucket" /runs
fi
commit={{commit|sh}}
if [ ! -e "/opt/ready-$commit" ]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
    rm -rf /opt/llm_jax
    git clone {{repository|sh}} /opt/llm_jax
    git -C /opt/llm_jax checkout --detach "$commit"
    /root/.local/bin/uv venv --clear --python 3.12 /opt/env
    /root/.local/bin/uv pip install --python /opt/env/bin/python \
        -r /opt/llm_jax/requirements.txt 'jax[tpu]'
    touch "/opt/ready-$commit"
fi
cd /opt/llm_jax
export PATH=/opt/env/bin:$PATH
export LLM_JAX_START_SECONDS=3600  # time for a host in maintenance to return
{{?setup}}

# A host that shuts down passes the signal on to the run, and starts this script again at boot.
leaving=
trap 'leaving=1; kill -TERM "$!" 2> /dev/null || true' TERM
crashes=0
at=
while [ -z "$leaving" ]; do
    code=0
    {{command|sh}} &
    run=$!
    wait "$run" || code=$?
    while kill -0 "$run" 2> /dev/null; do  # the signal ended the wait, not the run
        code=0
        wait "$run" || code=$?
    done
    [ -z "$leaving" ] || exit "$code"
    newest=$(find {{checkpoints|sh}} -maxdepth 1 -regex '.*/[0-9]+' -printf '%f\n' 2> /dev/null |
        sort -n | tail -n 1)
    [ "$at" = "$newest" ] || crashes=0
    at=$newest
    case $code in
        0 | 2) exit "$code" ;;  # finished; invalid config, not retried
        {{stopped}}) ;;  # all hosts have saved, because another one stops
        *)
            crashes=$((crashes + 1))
            [ "$crashes" -le {{retries}} ] || exit "$code"
            ;;
    esac
    sleep 10
done
exit {{stopped}}
