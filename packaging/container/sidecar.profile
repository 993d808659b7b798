# The guard's profile (kvfs mount --guard) for the containers of this directory: everything of
# `strict`, the reader beside kvfs in its PID namespace, and these mounts, read-only.
profile sidecar
base strict
bind /keys
bind /run/kvfs
bind /models
tmpfs /tmp
