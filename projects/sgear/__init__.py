"""What will happen next? S-GEAR: action anticipation guided by visual and language prototypes of the actions."""
