//go:build linux || freebsd

package child

import "syscall"

// attributes of the application: its account, a group of its own unless the terminal has to see
// one job, and death together with us.
func attributes(runAs *account, shareGroup bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: !shareGroup, Pdeathsig: syscall.SIGKILL, Credential: runAs.credential()}
}
