# docker build -t ncutils . && docker run --rm -p 8888:8888 ncutils
# The book is in /book/_build/laptop/_build/html; JupyterLab shows the chapters.
FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends chromium git make npm \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /book
COPY . .
# torch without GPU libraries: for a GPU leave this out
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
RUN make book PROFILE=laptop PIN=constraints.txt \
    && .venv/bin/python -m pip install --editable '.[live]' --constraint constraints.txt
EXPOSE 8888
CMD [".venv/bin/jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--allow-root", "chapters"]
