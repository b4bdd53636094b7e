//! Links, routes, netfilter and modules of a pod.
