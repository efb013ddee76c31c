"""Device math compiled from C on the machine that serves, for what torch does too slowly there."""
