#!/bin/bash
# Runs as root on every host, each time that it boots.
set -e
export HOME=/root
bucket={{bucket|sh}}
if [ -n "$bucket" ]; then
    if ! command -v gcsfuse; then
        release=gcsfuse-$(lsb_release -c -s)
        echo "deb https://packages.cloud.google.com/apt $release main" \
            > /etc/apt/sources.list.d/gcsfuse.list
        curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | apt-key add -
        apt-get update && apt-get install -y gcsfuse
    fi
    mkdir -p /runs
    mountpoint -q /runs || gcsfuse --implicit-dirs {{bucket|sh}} /runs
fi
if [ ! -e /opt/ready ]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
    git clone --depth=1 {{repository|sh}} /opt/llm_jax
    /root/.local/bin/uv venv --python 3.12 /opt/env
    /root/.local/bin/uv pip install --python /opt/env/bin/python \
        -r /opt/llm_jax/requirements.txt 'jax[tpu]'
    touch /opt/ready
fi
cd /opt/llm_jax
export PATH=/opt/env/bin:$PATH
{{setup}}
# {{stopped}}: it has saved, as this host was told to stop. 2: a config that no restart will mend.
for attempt in $(seq 0 {{retries}}); do
    code=0
    {{command|sh}} || code=$?
    case $code in 0|2|{{stopped}}) break ;; esac
    sleep 10  # a crash ends the others too
done
exit $code
