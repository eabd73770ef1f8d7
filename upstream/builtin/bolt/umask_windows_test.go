package bolt

func openUmask() (restore func()) { return func() {} }
