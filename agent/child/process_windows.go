package child

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

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

func attributes(shareGroup bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{}
	if !shareGroup {
		a.CreationFlags = windows.CREATE_NEW_PROCESS_GROUP // what Ctrl-Break is sent to
	}
	return a
}

// awaitExit returns when the process pid has ended.
func awaitExit(pid int) {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return
	}
	defer func() { _ = windows.CloseHandle(h) }()
	_, _ = windows.WaitForSingleObject(h, windows.INFINITE)
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

func signalOf(*os.ProcessState) os.Signal { return nil }

func signalNumber(os.Signal) int { return 0 }

func stopsProcess(os.Signal) bool { return false }

// isControllingTerminal reports whether f is a console.
func isControllingTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	err = conn.Control(func(fd uintptr) {
		var mode uint32
		is = windows.GetConsoleMode(windows.Handle(fd), &mode) == nil
	})
	return err == nil && is
}

// sentByTerminal reports whether a console sends sig by itself to all its processes.
func sentByTerminal(sig os.Signal) bool { return sig == os.Interrupt }

// ForwardedSignals returns the signals that a program which does nothing but run the
// application should hand to [Supervisor.Signal].
func ForwardedSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// ParseSignal reads the name of a signal in any case, with or without SIG in front.
func ParseSignal(s string) (os.Signal, error) {
	switch strings.TrimPrefix(strings.ToUpper(s), "SIG") {
	case "INT":
		return os.Interrupt, nil
	case "QUIT":
		return syscall.SIGQUIT, nil
	case "TERM":
		return syscall.SIGTERM, nil
	case "KILL":
		return os.Kill, nil
	}
	return nil, fmt.Errorf("%q is not a signal of Windows: use INT, QUIT, TERM or KILL", s)
}
