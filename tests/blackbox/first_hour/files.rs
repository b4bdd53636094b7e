//! Mounts, devices, cgroups and limits of a container.
