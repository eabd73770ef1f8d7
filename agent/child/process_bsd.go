//go:build unix && !linux && !freebsd

package child

import "syscall"

// attributes of the application: its account, and a group of its own unless the terminal has to
// see one job.
// There is no parent-death signal here.
func attributes(runAs *account, shareGroup bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: !shareGroup, Credential: runAs.credential()}
}
