//go:build !linux

package main

// programPages are the program's own code and constants, where the system has a way to let go of them.
type programPages struct{}

func findProgramPages() (programPages, error) { return programPages{}, nil }

func (programPages) divide() error { return nil }

func (programPages) release() error { return nil }
