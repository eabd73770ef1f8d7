package child

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// temporaryStartErrors say that the system is short of something, or the program being replaced:
// starting may succeed soon.
var temporaryStartErrors = []error{windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_SHARING_VIOLATION}

// group is a job object. It ends all its processes when its last handle is closed, so also
// when this process dies.
type group struct{ job windows.Handle }

// newGroup puts p into a job. What p starts before that is not in the job: a matter of
// microseconds after its creation.
func newGroup(p *os.Process, _ bool) (group, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return group{}, err
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	if err == nil {
		withHandle := p.WithHandle(func(h uintptr) { err = windows.AssignProcessToJobObject(job, windows.Handle(h)) })
		if err == nil {
			err = withHandle
		}
	}
	if err != nil {
		_ = windows.CloseHandle(job)
		return group{}, err
	}
	return group{job: job}, nil
}

func (g group) signal(os.Signal) error {
	return fmt.Errorf("Windows cannot signal a group of processes: switch signalGroup off")
}

func (g group) kill() error { return windows.TerminateJobObject(g.job, 1) }

func (g group) awaitEmpty(time.Duration) {}

func (g group) close() { _ = windows.CloseHandle(g.job) }

func attributes(_ *account, shareGroup bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{}
	if !shareGroup {
		a.CreationFlags = windows.CREATE_NEW_PROCESS_GROUP // what Ctrl-Break is sent to
	}
	return a
}

// awaitExit returns true when the process pid has ended; false when it cannot be watched.
func awaitExit(pid int) bool {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return false
	}
	defer func() { _ = windows.CloseHandle(h) }()
	_, err = windows.WaitForSingleObject(h, windows.INFINITE)
	return err == nil
}

// signalProcess sends what Windows has: Ctrl-Break for a polite signal, or the end.
func signalProcess(p *os.Process, sig os.Signal) error {
	switch sig {
	case os.Kill:
		return p.Kill()
	case os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT:
		return windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.Pid))
	}
	return fmt.Errorf("Windows cannot send %v: only INT, QUIT, TERM and KILL", sig)
}

func wake(*os.Process) {}

func endOf(s *os.ProcessState) end { return end{code: s.ExitCode()} }

// isControllingTerminal reports whether f, which may be nil, is a console.
func isControllingTerminal(f *os.File) bool {
	var mode uint32
	return f != nil && windows.GetConsoleMode(windows.Handle(f.Fd()), &mode) == nil
}

// sentByTerminal reports whether a console sends sig by itself to all its processes.
func sentByTerminal(sig os.Signal) bool { return sig == os.Interrupt }

// signals are those that Options can name.
var signals = map[string]os.Signal{"SIGINT": os.Interrupt, "SIGQUIT": syscall.SIGQUIT, "SIGTERM": syscall.SIGTERM, "SIGKILL": os.Kill}
