package scsi

// placeholders until the framework lands
type (
	Nexus    struct{}
	Unit     struct{}
	Device   struct{}
	itl      struct{}
	setEntry struct{}
)

const senseMax = 48
