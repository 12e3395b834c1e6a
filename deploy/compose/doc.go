// Package compose holds what docker-compose.yml gives the containers, and the tests which prove that it works: the permissions of the NATS users, and the
// whole fleet in containers.
package compose
