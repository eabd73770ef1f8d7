package child

import (
	"errors"
	"os"
	"os/user"
	"runtime"
	"strconv"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// account is who the application runs as. Nil is who this process is.
type account struct {
	uid, gid   uint32
	groups     []uint32 // the others
	name, home string   // empty: the system knows none
}

// account returns the account of User and Group; nil without User. The error is an
// [upstream.OptionErrors].
func (o Options) account() (*account, error) {
	var p upstream.OptionErrors
	switch {
	case o.User == "" && o.Group == "":
		return nil, nil
	case runtime.GOOS == "windows":
		p.Addf("user", o.User, "must be empty: Windows does not let the agent change its account")
		return nil, p
	case o.User == "":
		p.Addf("group", o.Group, "needs a user: as that of the agent, the application would keep its rights")
		return nil, p
	}
	a, err := lookUpAccount(o.User)
	if err != nil {
		p.Add("user", err)
		return nil, p
	}
	if o.Group != "" {
		gid, err := keyfile.GroupID(o.Group)
		if err != nil {
			p.Add("group", err)
			return nil, p
		}
		a.gid = uint32(gid)
	}
	switch {
	case a.uid == 0:
		p.Addf("user", o.User, "must be another user than root, who would keep all rights of the agent")
	case a.name == "" && o.Group == "":
		p.Addf("group", "", "is missing: the system does not know user %s, nor which group that is in", o.User)
	case os.Geteuid() != 0:
		p.Addf("user", o.User, "needs an agent that root has started: nobody else can start a program as another user")
	}
	return a, p.Err()
}

// lookUpAccount returns the account of a user that is given by name or number, with group root
// when the system does not know the number.
func lookUpAccount(name string) (*account, error) {
	uid, err := keyfile.UserID(name)
	if err != nil {
		return nil, err
	}
	a := &account{uid: uint32(uid)}
	u, err := user.LookupId(strconv.Itoa(uid))
	if _, unknown := errors.AsType[user.UnknownUserIdError](err); unknown {
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	a.name, a.home = u.Username, u.HomeDir
	for _, text := range append([]string{u.Gid}, ids...) {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, errors.New("has a group without a number")
		}
		a.groups = append(a.groups, uint32(id))
	}
	a.gid = a.groups[0]
	return a, nil
}

// variables returns what tells a program who it runs as.
func (a *account) variables() []string {
	if a == nil || a.name == "" {
		return nil
	}
	return []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name}
}
