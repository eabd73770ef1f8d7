package credentials

import "os"

// TakeForRoot makes the user who runs the test the one who may ask.
func (s *Server) TakeForRoot() { s.root = uint32(os.Getuid()) }

// AsUnit reads the rules as a server does.
func (o Options) AsUnit(unit, credential string) (string, error) {
	ref, err := newUnitSet(o.Units).ref(unit, credential)
	return ref.String(), err
}
