// Package peertest gives tests the real servers of others, built by .ci/peers: a Kubernetes API server over etcd, and whatever else an environment variable names.
package peertest
